"""What operators see: log lines, Prometheus metrics, OpenTelemetry traces."""

from app.telemetry.logs import configure_logging, logger

__all__ = ["configure_logging", "logger"]
