"""The embedded stack: real Kafka, Postgres, Valkey and S3 servers and every role, on one machine."""
