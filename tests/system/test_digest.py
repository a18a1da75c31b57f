"""Settings out of records, of this version and of earlier ones."""

import pytest

from cft.config.schema import Config, EvalSource
from cft.system.digest import from_plain
from cft.system.errors import UserError


def test_a_setting_that_earlier_versions_had_is_passed_over():
    found = from_plain(Config, {"eval": {"name": "sts", "source": "sts", "pairs": 1000}})
    assert found.eval.source is EvalSource.sts and not hasattr(found.eval, "pairs")


@pytest.mark.parametrize(
    ("record", "named"), [({"eval": {"peirs": 1}}, "peirs"), ({"data": {"source": "scenes"}}, "'scenes'"), (3, "3")]
)
def test_what_no_setting_or_choice_is_called_is_named(record, named):
    with pytest.raises(UserError, match=f"a record of other settings than this version of cft has: {named}"):
        from_plain(Config, record)
