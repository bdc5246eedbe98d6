"""What every part needs: peers, servers, managers, load, figures of processes, and the report."""
