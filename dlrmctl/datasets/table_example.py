"""A schema of tables with every key there is, for help and documentation; needs nothing but itself."""

EXAMPLE = """\
label = "clicked"            # 0 and 1, or true and false
dense = ["age", "price"]
sparse = ["user", "item", "genres"]

# All that follows can be left out; these are the defaults where there is one.
label_positive = ">= 4"      # or the positive values: ["buy", "cart"]
transform = "log"            # of dense values, log(max(x, -2) + 3);
                             # "log1p": log(1 + max(x, 0)); "none"
missing = ["NA"]             # besides nothing, NaN and null
missing_value = -1.0         # stand-in for a missing dense value where --dense-inputs is raw
separator = ","              # of text; a tab in files named .tsv
quote = '"'                  # "" if quotes are letters like others
list_separator = "|"         # of the values of a list in text

[columns.price]              # for one column: transform, missing,
transform = "none"           # missing_value

[columns.genres]             # for one sparse column: missing,
max_ids = 8                  # lists of at most so many values
truncate = "reject"          # longer: "reject" the row, or keep the
                             # "first" or the "last" values
type = "string"              # texts as they are, 1.0 is not 1; or
                             # "integer": every other value is wrong
"""
