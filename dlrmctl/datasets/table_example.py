"""An example schema with all keys, for help and documentation."""

EXAMPLE = """\
label = "clicked"            # 0 and 1, or true and false
dense = ["age", "price", "tenure"]
sparse = ["user", "item", "genres", "age_bucket", "user_hour"]

# Everything below is optional; the values are the defaults where there is one.
label_positive = ">= 4"      # or the positive values: ["buy", "cart"]
transform = "log"            # of dense values, log(max(x, -2) + 3);
                             # "log1p": log(1 + max(x, 0));
                             # "sqrt": sqrt(max(x, 0)); "none"
missing = ["NA"]             # besides empty fields, NaN and null
missing_value = -1.0         # a missing dense value, if --dense-inputs is raw
separator = ","              # of text files; a tab in .tsv files
quote = '"'                  # "" if quotes have no meaning
list_separator = "|"         # between the values of a list
weight = "importance"        # how much each row counts in training and
                             # metrics: a number of at least 0; no default
group = "user"               # for gAUC, the mean AUC inside each group; no
                             # default
id = ["session", "row"]      # columns that predictions keep; no default

[columns.price]              # for one column: transform, missing,
transform = "none"           # missing_value
clip = [0, 1000]             # numbers beyond become these, before the
                             # transform

[columns.genres]             # for one sparse column: missing,
max_ids = 8                  # longest list
truncate = "reject"          # longer lists: "reject" the row, or keep the
                             # "first" or the "last" values
pooling = "sum"              # of the vectors of a list; or "mean"
weights = "genre_weights"    # a column of as many numbers, which multiply
                             # the vectors; no default
type = "string"              # values as they are, 1.0 is not 1; or
                             # "integer": other values are errors
table = "genres"             # the ids and the table that it shares with
                             # others; default: its own

# Columns that are made of others. `column` also gives one column of the files
# a second name, for another transform or type.
[columns.visited]            # a column of times: sparse columns visited_hour
parts = ["hour", "weekday"]  # and visited_weekday; also minute, day, week,
                             # month, quarter, year
epoch = "seconds"            # for numbers since 1970; or "milliseconds",
                             # "microseconds"

[columns.tenure]             # dense: the time from another column, or from a
column = "visited"           # date such as "2026-01-01", to this one
since = "signed_up"
unit = "days"                # or "hours", "minutes", "seconds"

[columns.age_bucket]         # sparse: at most this many buckets of equal
column = "age"               # counts of the training rows
buckets = 32

[columns.user_hour]          # sparse: pairs of values of two sparse columns
cross = ["user", "visited_hour"]
"""
