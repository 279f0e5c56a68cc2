"""What crosses layers: Arrow tables, configurations, records and fingerprints."""
