"""Telemetry of a run: what its steps changed, as metrics, as lines of JSON, as advice."""
