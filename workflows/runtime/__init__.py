"""Everything that knows Ray, but for its Jobs API and Tune."""
