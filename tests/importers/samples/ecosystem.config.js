// a shop: an API in Python, a worker, a Node front end
const path = require("path");
const common = { cwd: __dirname, max_restarts: 5, min_uptime: "20s" };

module.exports = {
  apps: [
    {
      ...common,
      name: 'shop-api',
      script: ".venv/bin/uvicorn",
      args: "shop.main:app --host 127.0.0.1 --port 8000",
      interpreter: "none",
      instances: "max",
      exec_mode: "fork",
      max_memory_restart: "300M",
      kill_timeout: 1600,
      env: { LOG_LEVEL: "info", PRICE: "5$", DATABASE_URL: process.env.DATABASE_URL || "sqlite://" },
      env_production: { LOG_LEVEL: "warning" },
      out_file: "./logs/out.log", error_file: "./logs/err.log",
      merge_logs: true,
      log_date_format: `YYYY-MM-DD`,
    },
    {
      name: "Mailer",
      script: "jobs/mail.py",
      interpreter: "./venv/bin/python3",
      args: ["--queue", "mail"],
      instances: 2,
      autorestart: true,
      cron_restart: "0 4 * * *",
      watch: ["jobs"],
      ignore_watch: ["jobs/tmp", "node_modules"],
      wait_ready: true,
    },
    {
      name: "front", script: "server.js", instances: -1, port: 3000,
      nodeArgs: ["--max-old-space-size=" + 256 * 2],
      max_restart: 3, /* a typo that pm2 swallows */
    },
  ],
  deploy: { production: { host: ["a"], ref: "origin/main" } },
};
