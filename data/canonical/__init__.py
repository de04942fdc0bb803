"""The canonical form of a value, so that equal values of different file formats have the same id.

Manifests call the rule `canonical-1`; another rule needs another name.
A categorical value is identified by its own text, not by the type of its column:

- Numbers are equal by value: 13, 13.0, 13.00 and 1.3e+1 are `13`; 1.50 is `1.5`; -0.0 is `0`. A string is a number as
  programs write one: digits without a leading zero, plus or blank, a fraction, an exponent. An exponent needs a sign,
  or a decimal point before it: 5e1 may be a code. `007` is a string. Floats are the shortest decimals that convert back
  to them.
- True and false are `1` and `0`, in letters of any case.
- Dates and times are ISO 8601: `2024-05-01`, `2024-05-01T09:30:00.5`. Midnight is the date alone, trailing zeros of a
  fraction do not count, and times with an offset are in UTC, with a `Z`.
- Infinity is `inf` or `-inf`. Null and NaN are missing values.
- Every other string is unchanged.

The word of a value has 64 bits: an integer from -2**63 to 2**63 - 1 is its own word (two's complement); otherwise it is
the first 64 bits of BLAKE2b of the canonical text in UTF-8, little-endian. N values, K distinct ones.
"""
