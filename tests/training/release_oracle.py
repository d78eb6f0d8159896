"""A slow second implementation of the method, for tests: method.md's sentences one by one.

It follows the authors' release in its shape (77 text tokens, every prompt of a batch, biases per
head, two passes of the BN neck, a loop for the memory) and shares no code with muva. `record` draws
parameters and inputs for given settings and writes the results as the golden files are written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray]
Settings = Mapping[str, Any]

GOLDEN_SETTINGS: dict[str, Any] = {
    "parts": [0, 1, 2],
    "template": "universal",
    "domain_context": "",
    "context_tokens": 4,
    "gating": "offline",
    "mask_max_value": 0.0,
    "mask_loss": "bce+dice",
    "part_token_init": "random",
    "predictor_heads": 2,
    "predictor_layer_norm": True,
    "predictor_shortcut": True,
    "i2t_normalised": False,
    "i2t_temperature": 1.0,
    "memory_hard_update": True,
    "memory_temperature": 0.01,
    "memory_momentum": 0.2,
}
SMALL_CLIP = {
    "vision_width": 64,
    "vision_layers": 2,
    "vision_heads": 1,
    "patch": 16,
    "stride": 16,
    "pretrained_grid": [4, 4],
    "text_width": 64,
    "text_heads": 1,
    "text_layers": 2,
    "embed_dim": 32,
    "context_length": 77,
    "vocab": 49408,
}


def record(
    folder: Path,
    *,
    image_size: tuple[int, int] = (96, 48),
    stride: int = 16,
    pids: tuple[int, ...] = (0, 0, 0, 1, 3, 3, 3, 3),
    seed: int = 0,
    clip: Mapping[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """Write NAME.json and NAME.npz for these settings and return the JSON's path."""
    sizes = {**SMALL_CLIP, **(clip or {}), "stride": stride}
    settings = {**GOLDEN_SETTINGS, **changed, "clip": sizes}
    rows, columns = ((side - 16) // stride + 1 for side in image_size)
    parts = len(settings["parts"])
    settings |= {"N": 5, "B": len(pids), "R": parts, "L": rows * columns, "grid": [rows, columns]}
    while True:
        arrays = _random_inputs(settings, image_size, pids, np.random.default_rng(seed))
        outputs = compute(settings, arrays)
        margin = np.abs(outputs["stage2/mask_probabilities"] - 0.5).min()
        if settings["gating"] == "online" or margin > 1e-5:
            break  # no gate so close to its threshold that another kernel may flip it
        seed += 1000
    arrays |= outputs
    names = ["identity", "image_to_text", "memory", "mask", "dice", "total"]
    settings["losses"] = {
        name: float(arrays[f"stage2/loss/{name}"])
        for name in names
        if f"stage2/loss/{name}" in arrays
    }
    settings["arrays"] = {name: [list(v.shape), str(v.dtype)] for name, v in arrays.items()}
    path = folder / "recording.json"
    path.write_text(json.dumps(settings))
    write_arrays(path, arrays)
    return path


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write the arrays beside their JSON."""
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **arrays)


def read_arrays(path: Path) -> Arrays:
    """Read the arrays beside their JSON."""
    with np.load(path.with_suffix(".npz")) as archive:
        return {name: archive[name] for name in archive.files}


def compute(settings: Settings, arrays: Arrays) -> Arrays:
    """All recorded outputs, from the recorded parameters and inputs."""
    return _Release(settings, arrays).outputs()


def prompt_ids(settings: Settings) -> Tensor:
    noun = ["person", "head of a person", "upper body of a person", "legs of a person"]
    texts = []
    for grain in [0, *(part + 1 for part in sorted(settings["parts"]))]:
        text = "A photo of a" + " *" * settings["context_tokens"]
        if settings["template"] == "universal":
            text += " " + noun[grain]
        if settings["domain_context"]:
            text += ", " + settings["domain_context"]
        texts.append(text)
    return open_clip.tokenize(texts, context_length=77)


class _Release:
    def __init__(self, settings: Settings, arrays: Arrays):
        self.settings = settings
        self.arrays = arrays
        self.weights = {
            name: torch.from_numpy(np.array(value)).float()
            for name, value in arrays.items()
            if name.startswith(("clip/", "muva/")) and name != "clip/token_ids_used"
        }
        for name in self.weights:
            if self._trained(name):
                self.weights[name].requires_grad_()
        self.images = (torch.from_numpy(arrays["input/images_u8"]).float() / 255 - 0.5) / 0.5
        self.pids = torch.from_numpy(arrays["input/pids"])
        self.masks = torch.from_numpy(arrays["input/part_masks"])
        self.centroid_pids = torch.from_numpy(arrays["stage1/centroid_pids"])
        self.parts = len(settings["parts"])
        self.running_mean = torch.zeros_like(self["muva/bn.bias"])
        self.running_var = torch.ones_like(self["muva/bn.bias"])

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name]

    @staticmethod
    def _trained(name: str) -> bool:
        if name == "muva/bn.bias" or "conv1" in name or name == "clip/visual.positional_embedding":
            return False
        return name.startswith(("muva/", "clip/visual."))

    # Text ---------------------------------------------------------------------------------------
    def text_features(self, contexts: Tensor) -> Tensor:
        ids = prompt_ids(self.settings)
        used = self.arrays["clip/token_ids_used"].tolist()
        rows = [[used.index(token) for token in text] for text in ids.tolist()]
        context_count = self.settings["context_tokens"]
        features = []
        for identity in range(len(contexts)):
            grains = []
            for grain, text_rows in enumerate(rows):
                x = self["clip/token_embedding_rows"][text_rows]
                x = torch.cat([x[:5], contexts[identity, grain], x[5 + context_count :]])
                x = x + self["clip/positional_embedding"]
                bias = torch.full((77, 77), -math.inf).triu(1)
                x = x[None]
                for layer in range(self.settings["clip"]["text_layers"]):
                    heads = self.settings["clip"]["text_heads"]
                    x = self._block(f"clip/transformer.resblocks.{layer}", x, bias[None], heads)
                x = self._layer_norm("clip/ln_final", x[0, ids[grain].argmax()])
                grains.append(x @ self["clip/text_projection"])
            features.append(torch.cat(grains))
        return torch.stack(features)

    # Images -------------------------------------------------------------------------------------
    def image_features(self, masks: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        clip, r = self.settings["clip"], self.parts
        patches = torch.nn.functional.conv2d(
            self.images, self["clip/visual.conv1.weight"], stride=clip["stride"]
        )
        batch = len(patches)
        rows = patches.shape[2]
        if self.settings["part_token_init"] == "patch_avg":
            band = rows // r
            part_tokens = torch.stack(
                [
                    patches[:, :, part * band : (part + 1) * band].mean(dim=(2, 3))
                    for part in range(r)
                ],
                dim=1,
            )
        else:
            part_tokens = self["muva/part_tokens"][None].repeat(batch, 1, 1)
        patch_tokens = patches.reshape(batch, clip["vision_width"], -1).permute(0, 2, 1)
        class_tokens = self["clip/visual.class_embedding"][None, None].repeat(batch, 1, 1)
        x = torch.cat([class_tokens, part_tokens, patch_tokens], dim=1)
        x = x + self["muva/visual_positional_embedding"]
        x = self._layer_norm("clip/visual.ln_pre", x)
        logits: Tensor | float = 0.0
        all_logits, all_probabilities = [], []
        for layer in range(clip["vision_layers"]):
            if masks is None:
                logits = logits + self._predict(layer, x[:, 1 : 1 + r], x[:, 1 + r :])
                probabilities = 1 / (1 + torch.exp(-logits))
                all_logits.append(logits)
                all_probabilities.append(probabilities)
                if self.settings["gating"] == "online":
                    v = self.settings["mask_max_value"]
                    gate = 2 * v * probabilities - v
                else:
                    gate = torch.where(probabilities.detach() > 0.5, 0.0, -math.inf)
            else:
                gate = torch.where(masks, 0.0, -math.inf)
            name = f"clip/visual.transformer.resblocks.{layer}"
            x = self._block(name, x, self.attention_bias(gate), clip["vision_heads"])
        x = self._layer_norm("clip/visual.ln_post", x) @ self["clip/visual.proj"]
        feature = torch.cat([x[:, token] for token in range(1 + r)], dim=1)
        if masks is not None:
            return feature, torch.empty(0), torch.empty(0)
        return feature, torch.stack(all_logits), torch.stack(all_probabilities)

    def attention_bias(self, gate: Tensor) -> Tensor:
        batch, r, patches = gate.shape
        rows = []
        for query in range(1 + r + patches):
            cells = []
            for key in range(1 + r + patches):
                query_part, key_part = query - 1, key - 1
                is_part = [1 <= query <= r, 1 <= key <= r]
                is_patch = [query > r, key > r]
                if is_part[0] and is_part[1] and query != key:
                    cells.append(torch.full((batch,), -math.inf))
                elif is_part[0] and is_patch[1]:
                    cells.append(gate[:, query_part, key - 1 - r])
                elif is_patch[0] and is_part[1]:
                    cells.append(gate[:, key_part, query - 1 - r])
                else:
                    cells.append(torch.zeros(batch))
            rows.append(torch.stack(cells, dim=1))
        return torch.stack(rows, dim=1)

    def _predict(self, layer: int, parts: Tensor, patches: Tensor) -> Tensor:
        name = f"muva/mask_predictor.blocks.{layer}"
        norms = self.settings["predictor_layer_norm"]
        heads = self.settings["predictor_heads"]
        width = parts.shape[-1] // heads
        normed_parts = self._layer_norm(f"{name}.ln_attn1", parts) if norms else parts
        normed_patches = self._layer_norm(f"{name}.ln_attn2", patches) if norms else patches
        q = normed_parts @ self[f"{name}.cross_attn.to_q.weight"].T
        k = normed_patches @ self[f"{name}.cross_attn.to_k.weight"].T
        v = normed_patches @ self[f"{name}.cross_attn.to_v.weight"].T
        mixed = []
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(width)
            mixed.append(torch.softmax(scores, dim=-1) @ v[..., at])
        out = torch.cat(mixed, dim=-1) @ self[f"{name}.cross_attn.to_out.0.weight"].T
        out = out + self[f"{name}.cross_attn.to_out.0.bias"]
        if self.settings["predictor_shortcut"]:
            out = out + parts
        if norms:
            out = self._layer_norm(f"{name}.ln_mlp", out)
        out = out @ self[f"{name}.mlp.0.weight"].T + self[f"{name}.mlp.0.bias"]
        out = out * torch.sigmoid(1.702 * out)
        return out @ self[f"{name}.mlp.2.weight"].T + self[f"{name}.mlp.2.bias"]

    def _block(self, name: str, x: Tensor, bias: Tensor, heads: int) -> Tensor:
        width = x.shape[-1]
        normed = self._layer_norm(f"{name}.ln_1", x)
        qkv = normed @ self[f"{name}.attn.in_proj_weight"].T + self[f"{name}.attn.in_proj_bias"]
        q, k, v = qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :]
        per_head = width // heads
        mixed = []
        for head in range(heads):
            at = slice(head * per_head, (head + 1) * per_head)
            scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(per_head) + bias
            mixed.append(torch.softmax(scores, dim=-1) @ v[..., at])
        out = torch.cat(mixed, dim=-1) @ self[f"{name}.attn.out_proj.weight"].T
        x = x + out + self[f"{name}.attn.out_proj.bias"]
        out = self._layer_norm(f"{name}.ln_2", x) @ self[f"{name}.mlp.c_fc.weight"].T
        out = out + self[f"{name}.mlp.c_fc.bias"]
        out = out * torch.sigmoid(1.702 * out)
        return x + out @ self[f"{name}.mlp.c_proj.weight"].T + self[f"{name}.mlp.c_proj.bias"]

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self[f"{name}.weight"] + self[
            f"{name}.bias"
        ]

    # Heads --------------------------------------------------------------------------------------
    def neck(self, feature: Tensor, *, training: bool) -> Tensor:
        if training:
            mean, variance = feature.mean(dim=0), feature.var(dim=0, unbiased=False)
            with torch.no_grad():
                unbiased = feature.var(dim=0, unbiased=True)
                self.running_mean = 0.9 * self.running_mean + 0.1 * mean
                self.running_var = 0.9 * self.running_var + 0.1 * unbiased
        else:
            mean, variance = self.running_mean, self.running_var
        normalised = (feature - mean) / torch.sqrt(variance + 1e-5)
        return normalised * self["muva/bn.weight"] + self["muva/bn.bias"]

    def centroids(self, features: Tensor) -> Tensor:
        return torch.stack(
            [
                _unit(features[self.centroid_pids == identity].mean(dim=0))
                for identity in range(self.settings["N"])
            ]
        )

    def smoothed_cross_entropy(self, logits: Tensor, smoothing: float) -> Tensor:
        n = logits.shape[1]
        target = torch.full_like(logits, smoothing / n)
        for row, identity in enumerate(self.pids.tolist()):
            target[row, identity] = 1 - smoothing + smoothing / n
        log_probabilities = logits - torch.logsumexp(logits, dim=1, keepdim=True)
        return -(target * log_probabilities).sum(dim=1).mean()

    def memory_after(self, memory: Tensor, features: Tensor) -> Tensor:
        memory, momentum = memory.clone(), self.settings["memory_momentum"]
        if self.settings["memory_hard_update"]:
            before = memory.clone()
            for identity in set(self.pids.tolist()):
                own = [row for row, pid in enumerate(self.pids.tolist()) if pid == identity]
                hardest = min(own, key=lambda row: float(features[row] @ before[identity]))
                moved = momentum * before[identity] + (1 - momentum) * features[hardest]
                memory[identity] = _unit(moved)
            return memory
        for feature, identity in zip(features, self.pids.tolist(), strict=True):
            memory[identity] = _unit(momentum * memory[identity] + (1 - momentum) * feature)
        return memory

    # Everything recorded ------------------------------------------------------------------------
    def outputs(self) -> Arrays:
        out: dict[str, Tensor] = {"prompts/token_ids": prompt_ids(self.settings)}
        contexts = self["muva/contexts"].detach()
        with torch.no_grad():
            prototypes = out["text/features"] = self.text_features(contexts)
            given = self.image_features(self.masks)[0]
            out["image/feature_given_masks"] = given
            out["image/feature_given_masks_bn_eval"] = self.neck(given, training=False)
            predicted = self.image_features(None)[0]
            out["image/feature_predicted_masks"] = predicted
            out["image/feature_predicted_masks_bn_eval"] = self.neck(predicted, training=False)
            gate = torch.where(self.masks[:2], 0.0, -math.inf)
            out["attention_bias/given_masks"] = self.attention_bias(gate)
        out |= self._stage1(contexts, given)
        out |= self._stage2(prototypes, given)
        return {name: value.detach().numpy() for name, value in out.items()}

    def _stage1(self, contexts: Tensor, features: Tensor) -> dict[str, Tensor]:
        centroids = self.centroids(features)
        contexts = contexts.clone().requires_grad_()
        text = self.text_features(contexts[self.pids])  # every entry's prompt, repeats included
        logits = torch.stack([_unit(row) for row in text]) @ centroids.T
        loss = self.smoothed_cross_entropy(logits, 0.0)
        (gradient,) = torch.autograd.grad(loss, contexts)
        low, high, last = 1e-5, 3.5e-4, 1e-6
        rates = [
            low + (high - low) * e / 5
            if e < 5
            else last + (high - last) * (1 + math.cos(math.pi * e / 120)) / 2
            for e in range(1, 121)
        ]
        after = _first_adam_step(contexts.detach(), gradient, rates[2], decay=1e-4)
        return {
            "stage1/centroids": centroids,
            "stage1/loss": loss,
            "stage1/context_grad": gradient,
            "stage1/lr_by_epoch_1_to_120": torch.tensor(rates, dtype=torch.float64),
            "stage1/contexts_after_adam_step_at_epoch_3": after,
        }

    def _stage2(self, prototypes: Tensor, given: Tensor) -> dict[str, Tensor]:
        s = self.settings
        with torch.no_grad():
            necked = self.neck(given, training=False)
            memory = self.centroids(torch.stack([_unit(row) for row in necked]))
        rates = []
        for e in range(1, 61):
            warmup = 0.1 + 0.9 * e / 10 if e < 10 else 1.0
            rate = 5e-6 * warmup * 0.1 ** ((e >= 30) + (e >= 50))
            rates.append([rate, 10 * rate])
        feature, mask_logits, probabilities = self.image_features(None)
        logits = self.neck(feature, training=True) @ self["muva/classifier.weight"].T
        necked = self.neck(feature, training=True)  # the release's second pass
        compared = torch.stack([_unit(row) for row in necked])
        image_side, text_side = feature, prototypes
        if s["i2t_normalised"]:
            image_side = torch.stack([_unit(row) for row in feature])
            text_side = torch.stack([_unit(row) for row in prototypes])
        text_logits = image_side @ text_side.T / s["i2t_temperature"]
        losses = {
            "identity": self.smoothed_cross_entropy(logits, 0.1),
            "image_to_text": self.smoothed_cross_entropy(text_logits, 0.1),
            "memory": self.smoothed_cross_entropy(compared @ memory.T / s["memory_temperature"], 0),
        }
        masks = self.masks.float()
        if s["mask_loss"] == "mse":
            losses["mask"] = ((probabilities - masks) ** 2).mean()
        else:
            log_in = torch.nn.functional.logsigmoid(mask_logits)
            log_out = torch.nn.functional.logsigmoid(-mask_logits)
            losses["mask"] = -(masks * log_in + (1 - masks) * log_out).mean()
            overlap = (probabilities * masks).sum(dim=-1)
            sizes = probabilities.sum(dim=-1) + masks.sum(dim=-1)
            losses["dice"] = (1 - (2 * overlap + 1e-3) / (sizes + 1e-3)).mean()
        losses["total"] = sum(losses.values(), torch.zeros(()))
        out = {
            "stage2/memory_before": memory,
            "stage2/lr_by_epoch_1_to_60": torch.tensor(rates, dtype=torch.float64),
            "stage2/logits": logits,
            "stage2/feature": feature,
            "stage2/mask_probabilities": probabilities,
            "stage2/mask_logits": mask_logits,
            "stage2/feature_bn_normalised": compared,
            "stage2/memory_after": self.memory_after(memory, compared.detach()),
            "stage2/bn_running_mean_after": self.running_mean,
            "stage2/bn_running_var_after": self.running_var,
        }
        out |= {f"stage2/loss/{name}": value for name, value in losses.items()}
        trained = [n for n in self.weights if self._trained(n) and n != "muva/contexts"]
        gradients = torch.autograd.grad(losses["total"], [self[name] for name in trained])
        for name, gradient in zip(trained, gradients, strict=True):
            predicts = "mask_predictor" in name
            rate, decay = (rates[4][1], 0.0) if predicts else (rates[4][0], 1e-4)
            after = _first_adam_step(self[name].detach(), gradient, rate, decay=decay).double()
            sums = torch.stack([after.sum(), (after**2).sum()])
            out[f"stage2/grad_norm/{_release_name(name)}"] = gradient.norm()
            key = f"stage2/param_sum_after_adam_step_at_epoch_5/{_release_name(name)}"
            out[key] = sums
        return out


def _first_adam_step(values: Tensor, gradient: Tensor, rate: float, *, decay: float) -> Tensor:
    gradient = gradient + decay * values
    first, second = 0.1 * gradient, 0.001 * gradient**2
    return values - rate * (first / (1 - 0.9)) / (torch.sqrt(second / (1 - 0.999)) + 1e-8)


def _unit(row: Tensor) -> Tensor:
    return row / row.norm()


def _release_name(name: str) -> str:
    for ours, theirs in {
        "muva/part_tokens": "local_token",
        "muva/visual_positional_embedding": "image_encoder.positional_embedding",
        "muva/mask_predictor.": "residual_mask_predictor.",
        "muva/bn.": "bnneck.",
        "muva/classifier.": "fc.",
        "clip/visual.": "image_encoder.",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def _random_inputs(
    settings: Settings,
    image_size: tuple[int, int],
    pids: tuple[int, ...],
    rng: np.random.Generator,
) -> Arrays:
    clip = settings["clip"]
    n, r, patches = settings["N"], settings["R"], settings["L"]
    width, text_width, embed = clip["vision_width"], clip["text_width"], clip["embed_dim"]
    batch, feature = len(pids), (1 + settings["R"]) * clip["embed_dim"]

    def normal(*shape: int, std: float = 1.0, mean: float = 0.0) -> np.ndarray:
        return (mean + std * rng.standard_normal(shape)).astype(np.float16)

    def tower(prefix: str, layers: int, width: int) -> Arrays:
        blocks: Arrays = {}
        for layer in range(layers):
            name = f"{prefix}transformer.resblocks.{layer}"
            blocks |= {
                f"{name}.attn.in_proj_weight": normal(3 * width, width, std=width**-0.5),
                f"{name}.attn.in_proj_bias": normal(3 * width, std=0.1),
                f"{name}.attn.out_proj.weight": normal(width, width, std=width**-0.5),
                f"{name}.attn.out_proj.bias": normal(width, std=0.1),
                f"{name}.ln_1.weight": normal(width, std=0.1, mean=1),
                f"{name}.ln_1.bias": normal(width, std=0.1),
                f"{name}.mlp.c_fc.weight": normal(4 * width, width, std=width**-0.5),
                f"{name}.mlp.c_fc.bias": normal(4 * width, std=0.1),
                f"{name}.mlp.c_proj.weight": normal(width, 4 * width, std=width**-0.5 / 2),
                f"{name}.mlp.c_proj.bias": normal(width, std=0.1),
                f"{name}.ln_2.weight": normal(width, std=0.1, mean=1),
                f"{name}.ln_2.bias": normal(width, std=0.1),
            }
        return blocks

    grid = clip["pretrained_grid"]
    arrays: Arrays = {
        "input/images_u8": rng.integers(0, 256, (batch, 3, *image_size), dtype=np.uint8),
        "input/pids": np.array(pids),
        "input/part_masks": rng.random((batch, r, patches)) < 0.4,
        "stage1/centroid_pids": np.arange(batch) % n,
        "clip/visual.class_embedding": normal(width, std=0.3),
        "clip/visual.positional_embedding": normal(grid[0] * grid[1] + 1, width, std=0.3),
        "clip/visual.proj": normal(width, embed, std=width**-0.5),
        "clip/visual.conv1.weight": normal(width, 3, 16, 16, std=0.04),
        "clip/positional_embedding": normal(77, text_width, std=0.1),
        "clip/text_projection": normal(text_width, embed, std=text_width**-0.5),
        "clip/logit_scale": np.array(4.6052, dtype=np.float32),
    }
    for name, size in {
        "visual.ln_pre": width,
        "visual.ln_post": width,
        "ln_final": text_width,
    }.items():
        arrays[f"clip/{name}.weight"] = normal(size, std=0.1, mean=1)
        arrays[f"clip/{name}.bias"] = normal(size, std=0.1)
    arrays |= tower("clip/visual.", clip["vision_layers"], width)
    arrays |= tower("clip/", clip["text_layers"], text_width)

    arrays["muva/contexts"] = normal(n, 1 + r, settings["context_tokens"], text_width, std=0.1)
    arrays["muva/classifier.weight"] = normal(n, feature, std=0.05)
    arrays["muva/bn.weight"] = (1 + 0.1 * rng.standard_normal(feature)).astype(np.float32)
    arrays["muva/bn.bias"] = np.zeros(feature, dtype=np.float32)
    arrays["muva/visual_positional_embedding"] = _resized_positions(arrays, settings)
    if settings["part_token_init"] != "patch_avg":
        arrays["muva/part_tokens"] = normal(r, width, std=0.3)
    for layer in range(clip["vision_layers"]):
        name = f"muva/mask_predictor.blocks.{layer}"
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            arrays[f"{name}.cross_attn.{part}.weight"] = normal(width, width, std=width**-0.5)
        arrays[f"{name}.cross_attn.to_out.0.bias"] = normal(width, std=0.1)
        arrays[f"{name}.mlp.0.weight"] = normal(patches, width, std=width**-0.5)
        arrays[f"{name}.mlp.0.bias"] = normal(patches, std=0.1)
        arrays[f"{name}.mlp.2.weight"] = normal(patches, patches, std=patches**-0.5)
        arrays[f"{name}.mlp.2.bias"] = normal(patches, std=0.1)
        if settings["predictor_layer_norm"]:
            for norm in ("ln_attn1", "ln_attn2", "ln_mlp"):
                arrays[f"{name}.{norm}.weight"] = normal(width, std=0.1, mean=1)
                arrays[f"{name}.{norm}.bias"] = normal(width, std=0.1)
    used = np.unique(prompt_ids(settings).numpy())
    arrays["clip/token_ids_used"] = used
    arrays["clip/token_embedding_rows"] = normal(len(used), text_width, std=0.1)
    return arrays


def _resized_positions(arrays: Arrays, settings: Settings) -> np.ndarray:
    """That this is the release's resize, the golden file shows exactly."""
    stored = arrays["clip/visual.positional_embedding"].astype(np.float32)
    rows, columns = settings["clip"]["pretrained_grid"]
    grid = torch.from_numpy(stored[1:]).reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    new = torch.nn.functional.interpolate(grid, settings["grid"], mode="bilinear")
    tokens = new.permute(0, 2, 3, 1).reshape(-1, stored.shape[1]).numpy()
    first = np.repeat(stored[:1], 1 + settings["R"], axis=0)
    return np.concatenate([first, tokens]).astype(np.float16).astype(np.float32)
