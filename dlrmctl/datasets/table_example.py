"""An example schema with all keys, for help and documentation."""

EXAMPLE = """\
label = "clicked"            # 0 and 1, or true and false
dense = ["age", "price"]
sparse = ["user", "item", "genres"]

# Everything below is optional; the values are the defaults where there is one.
label_positive = ">= 4"      # or the positive values: ["buy", "cart"]
transform = "log"            # of dense values, log(max(x, -2) + 3);
                             # "log1p": log(1 + max(x, 0)); "none"
missing = ["NA"]             # besides empty fields, NaN and null
missing_value = -1.0         # a missing dense value, if --dense-inputs is raw
separator = ","              # of text files; a tab in .tsv files
quote = '"'                  # "" if quotes have no meaning
list_separator = "|"         # between the values of a list

[columns.price]              # for one column: transform, missing,
transform = "none"           # missing_value

[columns.genres]             # for one sparse column: missing,
max_ids = 8                  # longest list
truncate = "reject"          # longer lists: "reject" the row, or keep the
                             # "first" or the "last" values
type = "string"              # values as they are, 1.0 is not 1; or
                             # "integer": other values are errors
"""
