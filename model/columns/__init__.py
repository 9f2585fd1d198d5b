"""What the user declares of columns: sources, representations, the original's factories; plain data.

May import: model.errors, model.registry, model.settings.
"""

from model.columns.config import SHARED_SETTINGS as SHARED_SETTINGS
from model.columns.config import ColumnsConfig as ColumnsConfig
from model.columns.factories import bucketized_column as bucketized_column
from model.columns.factories import crossed_column as crossed_column
from model.columns.factories import embedding_column as embedding_column
from model.columns.factories import one_hot_column as one_hot_column
from model.columns.factories import real_valued_column as real_valued_column
from model.columns.factories import shared_embedding_columns as shared_embedding_columns
from model.columns.factories import sparse_column_with_hash_bucket as sparse_column_with_hash_bucket
from model.columns.factories import sparse_column_with_integerized_feature as sparse_column_with_integerized_feature
from model.columns.factories import sparse_column_with_keys as sparse_column_with_keys
from model.columns.factories import sparse_column_with_vocabulary_file as sparse_column_with_vocabulary_file
from model.columns.factories import weighted_sparse_column as weighted_sparse_column
from model.columns.representations import Column as Column
from model.columns.representations import Embedding as Embedding
from model.columns.representations import OneHot as OneHot
from model.columns.sources import Bucketized as Bucketized
from model.columns.sources import Categorical as Categorical
from model.columns.sources import Crossed as Crossed
from model.columns.sources import HashBucket as HashBucket
from model.columns.sources import Identity as Identity
from model.columns.sources import Key as Key
from model.columns.sources import Leaf as Leaf
from model.columns.sources import Numeric as Numeric
from model.columns.sources import Quantiles as Quantiles
from model.columns.sources import Source as Source
from model.columns.sources import Vocabulary as Vocabulary
from model.columns.sources import Weighted as Weighted
from model.columns.sources import data_columns as data_columns
from model.columns.sources import leaves as leaves
from model.columns.sources import source_key as source_key
