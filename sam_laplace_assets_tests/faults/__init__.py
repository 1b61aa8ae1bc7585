"""Attacks on the platform: bad input, deaths, full disks, damaged files, rivals, and hostile files."""
