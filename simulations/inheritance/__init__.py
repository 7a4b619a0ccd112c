"""The paper's scenarios: trains graphs of models that inherit from one another, forgets in them, measures."""
