"""A model as a service over HTTP, on Ray Serve: `muva serve`.

`api` and the modules beside it answer requests without knowing a model; `recogniser` is a replica
of one model; `application` deploys both. docs/serving.md is for those who call it.
"""
