"""Pictures for keeping, drawn from tidy DataFrames by matplotlib's object API, without pyplot.

Each picture is two steps: a data function turns frames into marks (small tuples), and a renderer draws the marks, here
on matplotlib's axes, in `rqlab.html` as SVG. So panel and picture cannot tell different stories.
"""

from rqlab.charts.backlogs import backlog
from rqlab.charts.chart import Chart
from rqlab.charts.delays import backoff_curves
from rqlab.charts.losses import losses
from rqlab.charts.outcomes import outcome_grid
from rqlab.charts.retrying import retries
from rqlab.charts.timelines import timeline
from rqlab.charts.tradeoffs import tradeoff
from rqlab.charts.whereabouts import whereabouts

__all__ = [
    "Chart",
    "backlog",
    "backoff_curves",
    "losses",
    "outcome_grid",
    "retries",
    "timeline",
    "tradeoff",
    "whereabouts",
]
