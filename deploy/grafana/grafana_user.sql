-- The user of Grafana's data source: reads the tables of the dashboards, nothing of keys, and writes nowhere. May be repeated;
-- run it again after `vlastream backup restore` or `rebuild`, which put another database in place of this one.
-- Its password is the environment's GRAFANA_DATABASE_PASSWORD.
\getenv password GRAFANA_DATABASE_PASSWORD

SELECT 'CREATE ROLE grafana' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') \gexec
ALTER ROLE grafana LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 10 PASSWORD :'password';
-- A panel that asks too much ends, rather than the sink's writes waiting for it.
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '15s';
GRANT USAGE ON SCHEMA public TO grafana;
GRANT SELECT ON
  inference_log, safety_incidents, safety_trend, monthly_usage, customer_data_consent, feedback
  TO grafana;
