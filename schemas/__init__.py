"""What crosses rooms: Arrow tables, configurations, records and fingerprints."""
