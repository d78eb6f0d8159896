"""The rasteriser: triangles to pixels with a depth buffer."""

from __future__ import annotations

import numpy as np

from muva.compiled import compiled

FAR = 1e9
"""Depth of the background."""


@compiled(fastmath=True)
def rasterise(points, faces, keep, attributes, height, width, cull_back_faces):
    """Draw triangles (F, 3) with the corners `points` (V, 3): x and y in pixels, and depth.

    Pixels where the interpolated keep (V,) is negative are cut away. Returns for each pixel the
    face (-1 for none), the depth (FAR for none) and the interpolated attributes (V, A) (zeros for
    none).
    """
    depth = np.full((height, width), FAR, np.float32)
    face_at = np.full((height, width), -1, np.int32)
    values = np.zeros((height, width, attributes.shape[1]), np.float32)
    half = np.float32(0.5)
    for face in range(faces.shape[0]):
        a, b, c = faces[face]
        if keep[a] < 0 and keep[b] < 0 and keep[c] < 0:
            continue
        ax, ay, az = points[a]
        bx, by, bz = points[b]
        cx, cy, cz = points[c]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area == 0 or (cull_back_faces and area > 0):
            continue
        left = max(0, int(np.ceil(min(ax, bx, cx) - half)))
        right = min(width - 1, int(np.floor(max(ax, bx, cx) - half)))
        top = max(0, int(np.ceil(min(ay, by, cy) - half)))
        bottom = min(height - 1, int(np.floor(max(ay, by, cy) - half)))
        for row in range(top, bottom + 1):
            y = row + half
            for column in range(left, right + 1):
                x = column + half
                wb = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
                wc = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
                wa = 1 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                z = wa * az + wb * bz + wc * cz
                if z >= depth[row, column]:
                    continue
                if wa * keep[a] + wb * keep[b] + wc * keep[c] < 0:
                    continue
                depth[row, column] = z
                face_at[row, column] = face
                for k in range(attributes.shape[1]):
                    values[row, column, k] = (
                        wa * attributes[a, k] + wb * attributes[b, k] + wc * attributes[c, k]
                    )
    return face_at, depth, values
