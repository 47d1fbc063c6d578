"""The paths of the V2 API, a module for each thing that they are about."""
