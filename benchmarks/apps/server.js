// node's own: http alone, or its cluster with WORKERS workers. `/pid` says who answers.
const http = require("http");
const cluster = require("cluster");
const workers = Number(process.env.WORKERS || 0);
if (workers && cluster.isPrimary) {
  for (let i = 0; i < workers; i++) cluster.fork();
  cluster.on("exit", () => cluster.fork());
  process.on("SIGTERM", () => process.exit(0));
} else {
  http
    .createServer((request, response) => {
      const body = request.url === "/" ? "Hello, world!\n" : String(process.pid);
      response.writeHead(200, { "Content-Type": "text/plain", "Content-Length": body.length });
      response.end(body);
    })
    .listen(Number(process.env.PORT), "127.0.0.1", () => process.send && process.send("ready"));
}
