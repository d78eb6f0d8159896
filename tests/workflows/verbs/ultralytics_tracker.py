"""What Ultralytics does with a model of its trackers' setting `model`.

Run in an environment of its own, which has Ultralytics and not muva: its licence is AGPL-3.0.
`python ultralytics_tracker.py TRACKER_YAML FRAMES.npz RESULTS.npz`
"""

# pyright: reportMissingImports=false

import sys

import numpy as np
from ultralytics import YOLO
from ultralytics.engine.results import Boxes
from ultralytics.trackers.track import TRACKER_MAP
from ultralytics.utils import YAML, IterableSimpleNamespace
from ultralytics.utils.checks import check_yaml

tracker_yaml, frames_file, results_file = sys.argv[1:]
stored = np.load(frames_file)
frames, boxes = stored["frames_bgr"], stored["boxes_xyxy"]
height, width = frames.shape[1:3]

# As ultralytics/trackers/track.py reads the file that `model.track(tracker=…)` names.
settings = IterableSimpleNamespace(**YAML.load(check_yaml(tracker_yaml)))
settings.device = "cpu"
tracker = TRACKER_MAP[settings.tracker_type](args=settings)
encoder = tracker.encoder
batches = []
run = encoder.model.backend.forward
encoder.model.backend.forward = lambda images: (batches.append(len(images)), run(images))[1]

found = {"size": encoder.imgsz}
tracks = []
for number, (frame, people) in enumerate(zip(frames, boxes, strict=True)):
    rows = np.concatenate([people, np.full((len(people), 1), 0.9), np.zeros((len(people), 1))], 1)
    detections = Boxes(rows.astype(np.float32), (height, width))
    crops = encoder._crop_detections(frame, detections.xywh)
    found[f"crops {number}"] = encoder._crops_to_tensor(crops).numpy()
    for person, crop in enumerate(crops):
        found[f"crop {number} {person}"] = crop
    found[f"features {number}"] = np.stack(encoder(frame, detections.xywh))
    tracks.append(tracker.update(detections, frame)[:, [4, -1]])
found["batches"] = batches
found["tracks"] = np.stack(tracks)
found["track features"] = np.stack([one.curr_feat for one in tracker.tracked_stracks])
found["track ids"] = [one.track_id for one in tracker.tracked_stracks]

# The whole way, with a detector of random weights: what it finds is of no interest.
detector = YOLO("yolo26n.yaml")
detector.track(frames[0], tracker=tracker_yaml, verbose=False, device="cpu")
found["size in track"] = detector.predictor.trackers[0].encoder.imgsz
np.savez(results_file, **found)
