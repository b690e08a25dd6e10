"""Studies of coupled weights: each returns a dataclass, `figures` draws it.

`options` states what they measure, `results` saves and loads results, `journal` stores the values
of a long study as they are measured, `page` writes the HTML reports.
"""
