"""Tools that the worker itself brings for agents, one module a kind; steps offer them to the model."""
