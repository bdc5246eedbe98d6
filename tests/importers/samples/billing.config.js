// Production processes of the billing service
require('dotenv').config();
const path = require('path');
const os = require('os');
const { version } = require('./package.json');

const isProduction = process.env.NODE_ENV === 'production';
const root = path.join(__dirname, '..');

function logs(name) {
  return path.join('/var/log/billing', `${name}.log`);
}

module.exports = {
  apps: [
    {
      name: 'billing-api',
      cwd: root,
      script: './venv/bin/gunicorn',
      args: 'billing.wsgi:application --bind 0.0.0.0:8000 --workers 3 --timeout 60',
      interpreter: 'none',
      instances: 1,
      autorestart: true,
      watch: !isProduction,
      max_memory_restart: isProduction ? '1G' : '400M',
      out_file: logs('api-out'),
      error_file: logs('api-err'),
      env: {
        ...process.env,
        DJANGO_SETTINGS_MODULE: 'billing.settings',
        RELEASE: version,
      },
    },
    {
      name: 'billing-worker',
      cwd: root,
      script: 'venv/bin/celery',
      args: ['-A', 'billing', 'worker', '-l', 'info', '--concurrency', String(os.cpus().length)],
      interpreter: 'none',
      kill_timeout: 60 * 1000,
      exp_backoff_restart_delay: 100,
    },
    {
      name: 'billing-beat',
      cwd: root,
      script: 'manage.py',
      args: 'celery_beat --pidfile=',
      interpreter: './venv/bin/python',
      cron_restart: '0 3 * * *',
      stop_exit_codes: [0],
    },
  ],
};
