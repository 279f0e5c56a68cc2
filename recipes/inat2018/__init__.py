"""Protocols for iNaturalist 2018."""
