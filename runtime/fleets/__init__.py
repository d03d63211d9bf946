"""Fleets: installations of robots that produce to Kafka themselves, each with topics and a user of its own."""
