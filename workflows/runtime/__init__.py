"""Everything that uses Ray, except for its Jobs API and Ray Tune."""
