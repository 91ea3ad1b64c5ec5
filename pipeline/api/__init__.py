"""Public functions and classes, available as names of `pipeline`."""

from pipeline.api.daily import rollback as rollback
from pipeline.api.daily import update as update
from pipeline.api.objects import Data as Data
from pipeline.api.objects import Run as Run
from pipeline.api.stages import compare as compare
from pipeline.api.stages import evaluate as evaluate
from pipeline.api.stages import export as export
from pipeline.api.stages import predict as predict
from pipeline.api.stages import preprocess as preprocess
from pipeline.api.stages import train as train
