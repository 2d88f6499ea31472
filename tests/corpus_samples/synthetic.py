"""The small spoken corpus that the fixture `corpus_root` makes, and its name in a trial."""

from data.callcentre.synthesize import SyntheticCorpusConfig
from orchestrator.corpora import corpus_ref

CONFIG = SyntheticCorpusConfig(train=10, validation=3, test=5, test_frame=2, test_domain=1)
REF = corpus_ref(CONFIG)
