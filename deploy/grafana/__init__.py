"""Grafana as code: three dashboards, written down in Python, generated as JSON, and provisioned by files."""
