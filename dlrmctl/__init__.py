"""Train DLRM recommendation models.

The libraries `data`, `embeddings`, `models` and `optim` are next to this directory in the repository and are imported
through links inside it (`dlrmctl.data`), so that a user's own `models.py` or `data/` is never imported by mistake. They
do not depend on each other or on the program. The program's packages, each importing only from packages before it:

    settings    the settings of a run             console     messages, tables, progress bars, pictures
    ranks       processes and their state         datasets    prepare, generate and show data
    assembly    settings -> model, optimizers     rundir      run directories and checkpoints
    plan        memory and time of a training     scoring     metrics, evaluate, compare, predict
    training    the training loop                 compress    smaller tables after training
    baseline    a logistic regression             export      a model for other programs
    doctor      checks of the installation        bench       measurements
    cli         commands and their options
"""
