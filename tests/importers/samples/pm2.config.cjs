module.exports = {
  apps : [{
    name   : "fastapi",
    script : "uvicorn",
    args   : "main:app --host 0.0.0.0 --port 8000 --workers 4 --reload",
    interpreter: "python3",
    interpreter_args: "-m",
    exec_mode: "fork",
    env: {
      "PYTHONPATH": ".",
      "PORT": 8000,
    }
  }, {
    name: "bot",
    script: "python3 bot.py --token $TOKEN",
    watch: true,
    ignore_watch: ["logs", "*.db"],
    restart_delay: 3000,
  }, {
    name: "flask",
    script: "app.py",
    interpreter: "/home/deploy/.virtualenvs/flask/bin/python3",
    cwd: "/home/deploy/flask",
    instances: 2,
    env: { FLASK_ENV: "production", SECRET: "a$b$$c" },
    log_date_format: "YYYY-MM-DD HH:mm Z",
    error_file: "/home/deploy/logs/flask.err",
    out_file: "/home/deploy/logs/flask.out",
  }, {
    name: "site",
    script: "bash",
    args: "-c 'cd web && npm start'",
  }]
}
