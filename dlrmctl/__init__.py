"""Train DLRM recommendation models: reads settings, composes the four libraries, and runs them.

The libraries `data`, `embeddings`, `models` and `optim` are beside this folder in the repository and below it once
imported (`dlrmctl.data`, through links), so that a `models.py` or a `data/` of the user's own is never taken for them.
They do not know each other or the program. Rooms of the program, each importing only from rooms before it:

    settings    what a run is, checked            console     lines, tables, bars, pictures
    ranks       processes and their state         datasets    prepared, generated and shown data
    assembly    settings -> model, optimizers     rundir      a run's directory, opened again
    plan        memory and time before a launch   scoring     metrics, evaluate, compare, predict
    training    the loop                          compress    smaller tables after training
    export      a model for other programs        doctor      the installation examined
    bench       measurements                      cli         flags -> one call
"""
