"""A repository's files as models: which quantisation a name states, which parts are one model, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.models.model import model_paths
from cerebrum_cli.models.variants import Variant, parts_of, quantization_of, same_quantization, variants


def parts(stem: str, count: int, ending: str = ".gguf") -> tuple[str, ...]:
    return tuple(f"{stem}-{number:05}-of-{count:05}{ending}" for number in range(1, count + 1))


@pytest.mark.parametrize(
    ("file", "quantization"),
    [
        ("Cerebrum-1.0-7b-Q4_K_M.gguf", "Q4_K_M"),
        ("Cerebrum-1.0-7b-Q4_K_M.GGUF", "Q4_K_M"),
        ("Cerebrum-1.0-7b-Q4_KS.gguf", "Q4_KS"),
        ("collectivecognition-v1-mistral-7b.Q4_K_M.gguf", "Q4_K_M"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("x.i1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("DeepSeek-R1-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf", "UD-IQ1_S"),
        ("gemma-3-4b-it-q4_k_m.gguf", "Q4_K_M"),
        ("ggml-model_q5_1.gguf", "Q5_1"),
        ("x-fp16.gguf", "FP16"),
        ("x.BF16.gguf", "BF16"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("x-NVFP4.gguf", "NVFP4"),
        ("Q4_K_M.gguf", "Q4_K_M"),
        ("Cerebrum-1.0-7b-Q8_0-00002-of-00003.GGUF", "Q8_0"),
        ("x-Q6_K-f16.gguf", "F16"),
        ("model.gguf", "model"),
        ("model-00001-of-00002.gguf", "model"),
        ("Llama-Q4-instruct.gguf", "Llama-Q4-instruct"),
        ("Q4_K_M/model-v2.gguf", "model-v2"),
        ("FAQ4.gguf", "FAQ4"),
        ("x-Q9_0.gguf", "x-Q9_0"),
        ("größe-Q4_0.gguf", "Q4_0"),
    ],
)
def test_variants_quantization_of_a_file_name(file: str, quantization: str) -> None:
    assert quantization_of(file) == quantization


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Q4_K_M", "Q4_K_M", True),
        ("Q4_K_S", "Q4_KS", True),
        ("q4ks", "Q4_K_S", True),
        ("UD-Q4_K_XL", "ud-q4_k_xl", True),
        ("UD-Q4_K_XL", "Q4_K_XL", False),
        ("Q4_K", "Q4_K_M", False),
        ("F16", "BF16", False),
        ("", "Q4_0", False),
    ],
)
def test_variants_compare_quantizations_loosely(one: str, other: str, same: bool) -> None:
    assert same_quantization(one, other) is same
    assert same_quantization(other, one) is same


IN_TWO, IN_THREE = parts("x-Q8_0", 2), parts("x-Q8_0", 3)
WHOLE = Variant("Q4_0", ("x-Q4_0.gguf",))
AUXILIARY = ("mmproj-F16.gguf", "mmproj-model-f16.gguf", "x.mmproj-Q8_0.gguf", "folder/MMPROJ-x.gguf", "imatrix.gguf")
NO_MODELS = ("x-imatrix.gguf", "imatrix_unsloth.gguf", "x-Q4_0.gguf.part", "x-Q4_0.bin", "README.md", "config.json")
INVALID_PARTS = ("x-Q4_0-00000-of-00000.gguf", "x-Q4_0-00001-of-00000.gguf", "x-Q4_0-00003-of-00002.gguf")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), ()),
        ((*AUXILIARY, *NO_MODELS, *INVALID_PARTS), ()),
        (
            ("x-Q8_0.gguf", "old/x.q4_0.gguf"),
            (Variant("Q4_0", ("old/x.q4_0.gguf",)), Variant("Q8_0", ("x-Q8_0.gguf",))),
        ),
        ((IN_THREE[2], "x-Q4_0.gguf", *IN_THREE[:2]), (WHOLE, Variant("Q8_0", IN_THREE))),
        *((("x-Q4_0.gguf", *IN_THREE[:at], *IN_THREE[at + 1 :]), (WHOLE,)) for at in range(3)),
        ((*parts("Q8_0/x", 2), *parts("x", 2)), (Variant("x", parts("Q8_0/x", 2)), Variant("x", parts("x", 2)))),
        ((*IN_THREE, *IN_TWO), (Variant("Q8_0", IN_TWO), Variant("Q8_0", IN_THREE))),
        ((*IN_THREE[1:], *IN_TWO), (Variant("Q8_0", IN_TWO),)),
        (("x.gguf", "x.GGUF"), (Variant("x", ("x.GGUF",)), Variant("x", ("x.gguf",)))),
        *(((name,), (Variant("Q4_0", (name,)),)) for name in ("mmprojected-Q4_0.gguf", "imatrixed-7b-Q4_0.gguf")),
        (("mmproj/x-Q4_0.gguf",), (Variant("Q4_0", ("mmproj/x-Q4_0.gguf",)),)),
    ],
)
def test_variants_group_files_into_models(files: tuple[str, ...], found: tuple[Variant, ...]) -> None:
    assert variants(files) == found


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("x-Q4_0.gguf", ("x-Q4_0.gguf",)),
        ("x-00001-of-00001.gguf", ("x-00001-of-00001.gguf",)),
        ("x-00001-of-00003.gguf", parts("x", 3)),
        ("x-00003-of-00003.gguf", parts("x", 3)),
        ("x-00002-of-00002.GGUF", parts("x", 2, ".GGUF")),
        ("x-1-of-2.gguf", ("x-1-of-2.gguf",)),
        ("x-00001-of-00002.bin", ("x-00001-of-00002.bin",)),
        ("x-00001-of-00000.gguf", ("x-00001-of-00000.gguf",)),
        ("x", ("x",)),
        ("", ("",)),
    ],
)
def test_variants_parts_of_any_part_are_the_same(name: str, names: tuple[str, ...]) -> None:
    assert parts_of(name) == names


def test_variants_model_paths_require_the_first_part(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in parts("x", 2))
    assert model_paths(first) == (first, second)
    with pytest.raises(ModelFileError) as caught:
        model_paths(second)
    assert caught.value.hint == f"use {first}"
    unsplit = tmp_path / "x-00001-of-00000.gguf"
    assert model_paths(unsplit) == (unsplit,)


stems = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "a/", "Q4_0/", "a/b/"]),
    st.sampled_from(["x", "y", "x-7b", "ä", "x-00001-of-00002-y"]),
    st.sampled_from(["", "-Q4_0", ".Q4_K_M", "-UD-Q4_K_XL", "-f16"]),
)
split_stems = stems | stems.map("{}-00001-of-00003".format)
whole = st.builds(parts, split_stems, st.integers(2, 4)) | stems.map(lambda stem: (f"{stem}.gguf",))
others = st.sampled_from(["README.md", "mmproj-x-f16.gguf", "x.imatrix.gguf", "x.gguf.json"])


@given(st.lists(whole, unique=True), st.lists(others), st.data())
def test_variants_partition_complete_sets_in_any_order(
    sets: list[tuple[str, ...]], beside: list[str], data: st.DataObject
) -> None:
    files = [*(name for names in sets for name in names), *beside]
    found = variants(data.draw(st.permutations(files)))
    assert sorted(each.files for each in found) == sorted(sets)
    assert found == variants(files)


@given(st.lists(whole, unique=True, max_size=4), st.data())
def test_variants_are_always_complete(sets: list[tuple[str, ...]], data: st.DataObject) -> None:
    names = sorted({"README.md"} | {name for names in sets for name in names})
    there = data.draw(st.lists(st.sampled_from(names), unique=True))
    for variant in variants(there):
        assert set(variant.files) <= set(there)
        assert all(parts_of(name) == variant.files for name in variant.files)
        assert {quantization_of(name) for name in variant.files} == {variant.quantization}
