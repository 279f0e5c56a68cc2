"""Types that several packages share: Arrow tables, configurations, records and fingerprints."""
