"""The paper's figures and tables on graphs of models that inherit from one another.

``python -m simulations.figures.inherited --help`` lists them; each has a file of its own.
"""
