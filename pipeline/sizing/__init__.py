"""Memory and cores of training and serving, from coefficients that a benchmark measured."""
