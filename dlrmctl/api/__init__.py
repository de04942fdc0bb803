"""The Python functions of `import dlrmctl`: prepare data, train, load a model, score rows."""
