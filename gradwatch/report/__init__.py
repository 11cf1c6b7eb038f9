"""The report of a run: one page that opens offline, and what else one does with a recorded run.

`material` is what is shown of a run, in bounded size, whether it comes out of a record or from a monitor. `figures`
draws it, `page` makes the file, `card` is what a notebook shows. `compare`, `replay` and `suggest` answer questions
about runs in numbers.
"""
