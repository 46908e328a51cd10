"""What all kinds of measurements share: errors and strict input, statistics, charts, reports, a private PostgreSQL."""
