"""Model folders made to harm: refused with one message before anything is allocated or run
(reliability cases 55 to 63).
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from helpers.resealed import reseal
from helpers.tiny_jina import END, TEXTS, tiny_backbone, tiny_tokenizer, write_repository
from safetensors.torch import load_file, save_file

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.model.folder import write_model
from taskdistill.model.model import Model
from taskdistill.model.safety import check_safetensors
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.types import MANIFEST, Pooling

CANARY_CODE = "import pathlib; pathlib.Path({!r}).write_text('ran')\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One sound folder of each kind: ours, the same without manifest (any sentence-transformers
    folder), the jina layout.
    """
    root = tmp_path_factory.mktemp("sound")
    module = TransformerModel(tiny_backbone("qwen3"), Pooling.LAST)
    settings = ModelSettings(
        prompts={"query": "Query: ", "document": "Document: "}, max_length=64, matryoshka_dims=(32,)
    )
    write_model(
        root / "ours",
        Model(
            module=module,
            tokenizer=TextTokenizer(tiny_tokenizer()),
            settings=settings,
            name="tiny",
            source=root,
        ),
    )
    shutil.copytree(root / "ours", root / "plain")
    (root / "plain" / MANIFEST).unlink()
    write_repository(root / "jina", "qwen3", tasks=["retrieval"])
    for path in (root / "jina").glob("*.py"):
        path.unlink()
    for kind in ("ours", "plain", "jina"):
        assert Encoder.load(
            root / kind, default_task="retrieval" if kind == "jina" else None, threads=1
        ).encode(TEXTS).shape == (8, 32)
    return root


@pytest.fixture
def copy(sound, tmp_path):
    def make(kind: str) -> Path:
        folder = tmp_path / kind
        shutil.copytree(sound / kind, folder)
        return folder

    return make


def refused(folder: Path, match: str, seconds: float = 5.0) -> str:
    canary = folder.parent / "canary"
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    with pytest.raises(BadInput, match=match) as caught:
        Encoder.load(folder, threads=1)
    assert (
        time.process_time() - began < seconds
    )  # of the processor: others may be at work on this machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss < 200_000
    assert not canary.exists()
    assert "\n" not in str(caught.value).strip()
    return str(caught.value)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# 55: pickles


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.write_text, (self.canary, "ran")


def test_the_canaries_are_there_when_the_traps_do_run(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "one")))
    exec(CANARY_CODE.format(str(tmp_path / "two")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_never_opened(copy, name):
    folder = copy("plain")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(folder.parent / "canary")))
    refused(folder, f"{name}.*pickled weights are never read: convert")


# 56: names of code


@pytest.mark.parametrize(
    "change",
    [
        {"custom_pipelines": {"x": {"impl": "evil.Evil"}}},
        {"quantization_config": {"quant_method": "evil"}},
        {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "evil"},
        {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": None},
        {"text_config": {"quantization_config": {"quant_method": "evil"}}},
        {"_attn_implementation_internal": "someone/evil"},
        {"attn_implementation": "someone/evil@main:evil"},
        {"use_kernels": True},
    ],
)
def test_configuration_that_names_code(copy, change):
    folder = copy("plain")
    (folder / "evil.py").write_text(CANARY_CODE.format(str(folder.parent / "canary")))
    edit(folder / "config.json", **change)
    refused(folder, "names code to run")


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}},
        {
            "auto_map": {
                "AutoModel": "someone/evil--evil.Evil",
                "AutoConfig": "someone/evil--evil.Evil",
            }
        },
        {"text_config": {"auto_map": {"AutoModel": "someone/evil--evil.Evil"}}},
    ],
)
def test_a_family_of_transformers_runs_none_of_the_folders_code(copy, change, trusted):
    """Hub folders of families that transformers has since learnt still name their modules; its own
    class stands in for them.
    """
    folder = copy("plain")
    expected = Encoder.load(folder, threads=1).encode(TEXTS)
    (folder / "evil.py").write_text(CANARY_CODE.format(str(folder.parent / "canary")))
    edit(folder / "config.json", **change)
    found = Encoder.load(folder, threads=1, trust_remote_code=trusted).encode(TEXTS)
    assert (found == expected).all() and not (folder.parent / "canary").exists()


def test_a_family_that_only_the_folder_knows_is_refused_by_name(copy):
    folder = copy("plain")
    edit(
        folder / "config.json",
        auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"},
        model_type="unheard_of",
    )
    said = refused(folder, "names code to run")
    assert "'unheard_of'" in said and "trust_remote_code" in said and "docs/families.md" in said
    with pytest.raises(BadInput, match=r"copy the whole repository, its \*.py files included"):
        Encoder.load(folder, threads=1, trust_remote_code=True)


OWN_CODE = """
from transformers import Qwen3Config, Qwen3Model


class OwnConfig(Qwen3Config):
    model_type = "unheard_of"


class OwnModel(Qwen3Model):
    config_class = OwnConfig

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, use_cache=False):
        found = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
            use_cache=False,
        )
        states = found.last_hidden_state
        found.last_hidden_state = states{MIXED}
        return found
"""


@pytest.mark.parametrize("mixed", ["", " + states.mean(0, keepdim=True)"])
def test_trusted_code_runs_alone_text_by_text_or_is_refused(copy, mixed):
    """A family of the folder's own is run in batches of equal length; one whose states depend on
    the batch is refused at load.
    """
    folder = copy("plain")
    expected = Encoder.load(folder, threads=1).encode(TEXTS)
    (folder / "own.py").write_text(OWN_CODE.replace("{MIXED}", mixed))
    edit(
        folder / "config.json",
        auto_map={"AutoModel": "own.OwnModel", "AutoConfig": "own.OwnConfig"},
        model_type="unheard_of",
    )
    if mixed:
        with pytest.raises(BadInput, match="other states beside another text than alone"):
            Encoder.load(folder, threads=1, trust_remote_code=True)
        return
    ours = Encoder.load(folder, threads=1, trust_remote_code=True)
    assert ours.model.module.batching == "equal"
    assert abs(ours.encode(TEXTS) - expected).max() <= 1e-6


def test_the_jina_layout_ignores_its_auto_map_and_its_files(copy):
    folder = copy("jina")
    for name in (
        "configuration_jina_embeddings_v5",
        "modeling_jina_embeddings_v5",
        "custom_st",
        "tokenization_evil",
    ):
        (folder / f"{name}.py").write_text(CANARY_CODE.format(str(folder.parent / "canary")))
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]},
    )
    assert Encoder.load(folder, threads=1).encode(TEXTS, task="retrieval").shape == (8, 32)
    assert not (folder.parent / "canary").exists()
    edit(
        folder / "config.json",
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e6,
            "auto_map": {"AutoModel": "evil.Evil"},
        },
    )
    refused(folder, "names code to run")


@pytest.mark.parametrize(
    "kind",
    [
        "evil.Module",
        "sentence_transformers.models.Dense",
        "os.system",
        "sentence_transformers.../evil.Transformer",
    ],
)
def test_modules_outside_the_list(copy, kind):
    folder = copy("plain")
    (folder / "evil.py").write_text(CANARY_CODE.format(str(folder.parent / "canary")))
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}])
    )
    refused(folder, "only Transformer|is not a list")


def test_an_adapter_at_the_root_would_load_another_base(copy):
    folder = copy("plain")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/evil"})
    )
    refused(folder, "names another base model")


# 57: safetensors


def header(entries: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "empty file": b"",
    "eight bytes": struct.pack("<Q", 10**15),
    "header larger than the file": header({}, length=10**15),
    "header of a gigabyte": header({}, length=10**9),
    "header is no JSON": struct.pack("<Q", 4) + b"}{}{",
    "header is a list": struct.pack("<Q", 2) + b"[]",
    "header nested deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "name twice": (
        struct.pack("<Q", 129)
        + (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2)[:-1].ljust(128)
        + b"}"
        + bytes(4)
    ),
    "overlap": header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "gap": header({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)),
    "beyond the end": header({"a": tensor([4], 0, 16)}, bytes(8)),
    "data left over": header({"a": tensor([1], 0, 4)}, bytes(64)),
    "shape lies": header({"a": tensor([10**9, 10**9], 0, 8)}, bytes(8)),
    "shape overflows": header({"a": tensor([2**62, 4], 0, 0)}),
    "negative shape": header({"a": tensor([-1, -4], 0, 16)}, bytes(16)),
    "backwards": header({"a": tensor([0], 8, 4)}, bytes(8)),
    "floats": header({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
    "unknown type": header({"a": tensor([1], 0, 4, "F128")}, bytes(4)),
    "entry is a string": header({"a": "x"}),
    "offsets are three": header(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, bytes(4)
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lying_headers_are_refused_in_a_second_and_fifty_megabytes(tmp_path, name):
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[name])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadInput, match="no sound safetensors file"):
        check_safetensors(path)
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("kind", ["plain", "jina"])
def test_a_lying_header_is_refused_by_every_reader(copy, kind):
    folder = copy(kind)
    (folder / "model.safetensors").write_bytes(LIES["overlap"])
    refused(folder, "no sound safetensors file: its tensors overlap", 3)


def test_a_lying_adapter_is_refused(copy):
    folder = copy("jina")
    (folder / "adapters" / "retrieval" / "adapter_model.safetensors").write_bytes(
        LIES["shape lies"]
    )
    refused(folder, "adapters/retrieval.*no sound safetensors file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"r": 10**9}, "says 1000000000"),
        ({"r": 8}, r"rank \[4\], its adapter_config.json says 8"),
        ({"target_modules": "(a+)+$"}, "needs a list of module names"),
        ({"exclude_modules": "(a+)+$"}, "not read"),
        (
            {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
            "sets auto_mapping",
        ),
        ({"modules_to_save": ["embed_tokens"]}, "sets modules_to_save"),
        ({"use_dora": True}, "sets use_dora"),
        ({"peft_type": "IA3"}, "IA3 adapter"),
        ({"target_modules": ["q_proj", "no_such"]}, "tensors missing|unknown"),
    ],
)
def test_adapter_configurations(copy, change, match):
    folder = copy("jina")
    edit(folder / "adapters" / "retrieval" / "adapter_config.json", **change)
    refused(folder, match)


# 58: places outside the folder


@pytest.mark.parametrize(
    "target", ["../../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "a\\b"]
)
def test_index_that_points_outside(copy, target):
    folder = copy("plain")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, target)})
    )
    refused(folder, "outside the model folder")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json"]
)
def test_links_out_of_the_folder(copy, sound, name):
    folder = copy("plain")
    (folder / name).unlink()
    (folder / name).symlink_to(sound / "plain" / name)
    refused(folder, "is a link to")


def test_links_of_a_hub_cache_are_followed(copy, tmp_path):
    folder = copy("plain")
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        blob = blobs / str(path.relative_to(folder)).replace("/", "-")
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert Encoder.load(snapshot, threads=1).encode(TEXTS).shape == (8, 32)


def test_sound_shards_are_read_and_a_missing_one_is_named(copy):
    folder = copy("plain")
    tensors = load_file(folder / "model.safetensors")
    expected = Encoder.load(folder, threads=1).encode(TEXTS)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    table = {name: f"model-{1 + (i % 2):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(table.values()):
        save_file(
            {name: tensors[name] for name in names if table[name] == shard},
            folder / shard,
            metadata={"format": "pt"},
        )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": table})
    )
    assert (Encoder.load(folder, threads=1).encode(TEXTS) == expected).all()
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors is missing")


@pytest.mark.parametrize("task", ["../../../secret", "/etc", "..", "a/b", "", 7])
def test_task_names_that_are_paths(copy, task):
    folder = copy("jina")
    edit(folder / "config.json", task_names=[task])
    refused(folder, "names a task|task_names")


# 59: tokenizers


def step(**fields: object) -> dict:
    return fields


BOMB = step(type="Replace", pattern={"String": "a"}, content="a" * 1000)
TOKENIZERS = {
    "replacement of a thousand": (
        {"normalizer": {"type": "Sequence", "normalizers": [BOMB, BOMB]}},
        "puts in 1000 characters",
    ),
    "many small replacements": (
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": (
                    [step(type="Replace", pattern={"String": "a"}, content="aaaaaaaa")] * 9
                ),
            }
        },
        "9 of which lengthen",
    ),
    "prepend": (
        {"normalizer": {"type": "Prepend", "prepend": "a" * 100_000}},
        "puts in 100000 characters",
    ),
    "unknown normaliser": (
        {"normalizer": {"type": "Python", "code": "evil"}},
        "asks for the step 'Python'",
    ),
    "catastrophic expression": (
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(a+)+$"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "repeats a group",
    ),
    "catastrophic replacement": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": " "}},
        "repeats a group",
    ),
    "five powers": (
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"\s*" * 12 + "x"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "repeats more than five",
    ),
    "million special tokens": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": END, "type_id": 0}}] * 1000,
                "pair": [],
            }
        },
        "more than 64 special tokens",
    ),
    "special token of many ids": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": END, "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {
                    END: {"id": END, "ids": [0] * 100_000, "tokens": [END] * 100_000}
                },
            }
        },
        "more than 64 special tokens",
    ),
    "nested without end": (
        {"normalizer": None, "pre_tokenizer": {"type": "Sequence"}},
        "malformed",
    ),
    "model is a list": ({"model": []}, "holds no tokenizer"),
    "model of another kind": ({"model": {"type": "Python", "vocab": {}}}, "model of type 'Python'"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_that_would_never_end(copy, name):
    changes, match = TOKENIZERS[name]
    folder = copy("jina")
    edit(folder / "tokenizer.json", **changes)
    refused(folder, match)


def test_token_ids_beyond_the_table(copy):
    folder = copy("plain")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["vocab"]["zzz"] = 1_000_000
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    refused(folder, "ids up to 1000000, the token table only 320 rows")


def test_truncated_and_huge_tokenizers(copy):
    folder = copy("plain")
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(whole[: len(whole) // 2])
    refused(folder, "not valid JSON.*perhaps cut short")
    with (folder / "tokenizer.json").open("wb") as stream:
        stream.truncate(500_000_000)
    refused(folder, "500000000 bytes, at most")


# 60: a tokenizer swapped for another valid one


def test_a_swapped_tokenizer_is_found_by_its_hash(copy):
    folder = copy("ours")
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    one, two = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    refused(folder, "tokenizer.json: (content differs|[0-9]+ bytes instead)")


# 61: weights


def test_weights_that_are_not_those_of_the_model(copy):
    folder = copy("plain")
    tensors = load_file(folder / "model.safetensors")

    def refuse(changed: dict, match: str) -> None:
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        refused(folder, match)

    name = "layers.0.mlp.up_proj.weight"
    nan = tensors[name].clone()
    nan[3, 3] = float("nan")
    refuse(tensors | {name: nan}, f"{name} holds values that are not finite")
    refuse(
        {key: value for key, value in tensors.items() if key != name},
        rf"1 tensors missing \['{name}'\]",
    )
    refuse(tensors | {"backdoor.weight": torch.zeros(2)}, r"1 unknown \['backdoor.weight'\]")
    refuse(tensors | {name: tensors[name].to(torch.int32)}, "has type I32")
    refuse(
        tensors | {name: tensors[name][:, :16].contiguous()},
        r"has shape \[48, 16\], its config.json asks for \[48, 32\]",
    )
    refuse(tensors | {"../../evil": torch.zeros(2)}, "1 unknown")


# 62: configurations


@pytest.mark.parametrize("kind", ["plain", "jina"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, at most 512"),
        ({"num_hidden_layers": 400}, "asks for 400 layers|layer_types"),
        ({"num_hidden_layers": 3}, "tensors missing|layer_types"),
        ({"hidden_size": 65_536}, "asks for"),
        ({"num_attention_heads": 7}, "not a multiple"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings is 1000000000"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"head_dim": 2**20}, "asks for"),
        ({"hidden_act": "os.system"}, "describes no model|can make no configuration"),
    ],
)
def test_configurations_that_lie(copy, kind, change, match):
    folder = copy(kind)
    edit(folder / "config.json", **change)
    refused(folder, match)


@pytest.mark.parametrize(
    "name",
    ["config.json", "modules.json", "config_sentence_transformers.json", "1_Pooling/config.json"],
)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2", b"\xff\xfe", b"[" * 100_000, b'"x"', b"null"]
)
def test_json_files_that_are_none(copy, name, content):
    folder = copy("plain")
    (folder / name).write_bytes(content)
    refused(folder, "JSON|modules|module")


def test_a_configuration_of_a_gigabyte(copy):
    folder = copy("plain")
    with (folder / "config.json").open("wb") as stream:
        stream.truncate(10**9)
    refused(folder, "1000000000 bytes")


# 63: half copied


def test_half_copied_folders(copy):
    folder = copy("ours")
    (folder / "1_Pooling" / "config.json").unlink()
    refused(folder, "1_Pooling/config.json: missing")
    half = copy("plain")
    (half / "adapters" / "retrieval").mkdir(parents=True)
    refused(half, "only half copied")
    (half / "modules.json").unlink()
    refused(half, "no modules.json")
    jina = copy("jina")
    (jina / "adapters" / "retrieval" / "adapter_model.safetensors").unlink()
    refused(jina, "adapter_model.safetensors is missing")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": None},
        {"settings": {"evil": 1}},
        {"tasks": 3},
        {"tasks": ["../.."]},
        {"files": {"../../x": {"bytes": 1, "sha256": ""}}},
    ],
)
def test_manifests_that_lie(copy, change):
    folder = copy("ours")
    edit(folder / MANIFEST, **change)
    refused(folder, "taskdistill.json is damaged: it does not end with its SHA-256")
    reseal(folder)
    refused(
        folder,
        "lacks a field|names a task|outside the folder|tasks is 3, needs a list of different names",
    )
