"""Once the file `argv[1].go` is there, prints a million lines of 100 bytes; writes how long it took to the file argv[1]."""

import os
import sys
import time

LINES = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
line = "x" * 91
while not os.path.exists(sys.argv[1] + ".go"):
    time.sleep(0.01)
began = time.perf_counter()
write = sys.stdout.write
for number in range(LINES):
    write(f"{number:07d} {line}\n")
sys.stdout.flush()
took = time.perf_counter() - began
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(took))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(3600)
