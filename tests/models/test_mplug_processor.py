"""Pictures and texts of mPLUG, and how transformers finds its classes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mplug import WORDS, make_processor, tiny
from transformers import AutoProcessor, AutoTokenizer

from padapter.models.mplug import MPlugProcessor, MPlugTokenizer

IDS = {word: index for index, word in enumerate(WORDS)}


def ids(*words: str) -> list[int]:
    return [IDS[word] for word in words]


def test_a_single_text_has_no_sep_behind_it():
    tokenizer = make_processor().tokenizer
    assert tokenizer("What is the dog?").input_ids == ids("[CLS]", "what", "is", "the", "dog", "?")
    assert tokenizer("red [SEP] dogs [SEP] cat").input_ids == ids(
        "[CLS]", "red", "[SEP]", "dog", "##s", "[SEP]", "cat"
    )  # the question with text and objects that were read in the picture
    assert tokenizer("red", "dog").input_ids == ids("[CLS]", "red", "[SEP]", "dog", "[SEP]")
    assert set(tokenizer("red")) == {"input_ids", "attention_mask"}
    ported = make_processor(trailing_sep=True).tokenizer
    assert ported("red").input_ids == ids("[CLS]", "red", "[SEP]")


@pytest.mark.parametrize("trailing_sep", [False, True])
def test_targets_end_with_one_sep(trailing_sep):
    processor = make_processor(trailing_sep=trailing_sep)
    targets = processor.targets(["red dogs", "yes"])
    assert targets["decoder_input_ids"].tolist() == [
        ids("[CLS]", "red", "dog", "##s", "[SEP]"),
        ids("[CLS]", "yes", "[SEP]", "[PAD]", "[PAD]"),
    ]
    assert targets["decoder_attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert targets["labels"][1].tolist() == [*ids("[CLS]", "yes", "[SEP]"), -100, -100]
    short = processor.targets(["red dogs"], max_length=3)["decoder_input_ids"].tolist()
    assert short[0][:2] == ids("[CLS]", "red")
    assert len(short[0]) == 3


def test_answers_lose_the_three_special_tokens_and_no_others():
    processor = make_processor()
    rows = torch.tensor(
        [ids("[CLS]", "red", "dog", "##s", "[SEP]", "cat", "[PAD]"), ids(*["[CLS]", "[UNK]"], *["[PAD]"] * 5)]
    )
    assert processor.decode_answers(rows) == ["red dogs  cat", "[UNK]"]
    assert processor.decode_answers([ids("[CLS]", "no", ",", "two", ".", "[SEP]")]) == ["no, two."]


def test_pixels_are_those_of_the_published_evaluation():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (14, 30, 3), dtype=np.uint8))
    pixels = make_processor()(images=picture, return_tensors="pt").pixel_values
    resized = np.asarray(picture.resize((8, 8), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    wanted = torch.tensor((resized - mean) / std).permute(2, 0, 1)[None]
    torch.testing.assert_close(pixels.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trailing_sep", [False, True])
def test_saving_and_loading_through_auto_classes(trailing_sep, tmp_path):
    processor = make_processor(trailing_sep=trailing_sep)
    processor.save_pretrained(tmp_path)
    tiny()[0].config.save_pretrained(tmp_path)
    loaded, tokenizer = AutoProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is MPlugProcessor
    assert type(loaded.tokenizer) is type(tokenizer) is MPlugTokenizer
    for one in (loaded.tokenizer, tokenizer):
        assert one("what is red?").input_ids == processor.tokenizer("what is red?").input_ids
        assert one.trailing_sep is trailing_sep
    assert loaded.image_processor.size == processor.image_processor.size
    both = loaded(images=Image.new("RGB", (9, 5)), text=["red dogs", "yes"], padding=True, return_tensors="pt")
    assert both.pixel_values.shape == (1, 3, 8, 8)
    assert both.attention_mask.tolist() == [[1] * (4 + trailing_sep), [1] * (2 + trailing_sep) + [0, 0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mplug")
    model = tiny(words=len(WORDS))[0]
    model.save_pretrained(path)
    make_processor().save_pretrained(path)
    return path


def printed(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_padapter_is_enough(folder):
    """Each Auto class finds ours, and nothing is imported before it is asked for."""
    code = f"""
import sys
import padapter
from transformers import AutoConfig
print([name for name in sys.modules if name.startswith("padapter.models.mplug.")])
import transformers.modeling_layers  # imports the Auto classes of models while it is imported itself
from transformers import AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor, AutoTokenizer
print([name for name in sys.modules if name == "padapter.models.mplug.modeling"])
for auto in (AutoTokenizer, AutoProcessor, AutoModelForVisualQuestionAnswering, AutoModel, AutoConfig):
    print(type(auto.from_pretrained({str(folder)!r})).__name__)
"""
    configuration, models, *names = printed(code).splitlines()
    assert configuration == "['padapter.models.mplug.registration', 'padapter.models.mplug.configuration']"
    assert models == "[]"
    assert names == ["MPlugTokenizer", "MPlugProcessor", "MPlugForQuestionAnswering", "MPlugModel", "MPlugConfig"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import padapter, transformers.modeling_layers",
        "import transformers.modeling_layers, padapter",
        "import padapter, peft",
        "from transformers import AutoModel, AutoProcessor; import padapter",
    ],
)
def test_whatever_is_imported_first(first, folder):
    code = f"""
{first}
from transformers import AutoModel, AutoProcessor
print(type(AutoModel.from_pretrained({str(folder)!r})).__name__)
print(type(AutoProcessor.from_pretrained({str(folder)!r})).__name__)
"""
    assert printed(code).splitlines() == ["MPlugModel", "MPlugProcessor"]
