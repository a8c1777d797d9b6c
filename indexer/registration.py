"""The rigid motion that puts one scan onto another, by SimpleITK (extra ``register``).

It runs in a process of its own: SimpleITK and FAISS are both wrapped by SWIG, and who imports the former
finds the latter's vectors broken.
"""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ReadError
from indexer.scan import Scan

TIMEOUT = 120
"""Seconds that a registration may take; three is usual."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS to SimpleITK's coordinates, and back."""


def rigid(scan: Scan, onto: Scan) -> NDArray[np.float64]:
    """The motion that puts a scan onto another.

    Parameters
    ----------
    scan, onto : Scan
        With affines.

    Returns
    -------
    ndarray, shape (4, 4)
        From RAS+ millimetres to RAS+ millimetres; applied before the scan's affine.

    Raises
    ------
    ReadError
        If no motion is found.
    """
    content = io.BytesIO()
    np.savez(
        content,
        moving=np.asarray(scan.voxels, np.float32),
        moving_affine=np.asarray(scan.affine),
        fixed=np.asarray(onto.voxels, np.float32),
        fixed_affine=np.asarray(onto.affine),
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "indexer.registration"],
            input=content.getvalue(),
            capture_output=True,
            timeout=TIMEOUT,
            check=True,
        )
        motion = np.frombuffer(done.stdout, "<f8").reshape(4, 4)
    except (subprocess.SubprocessError, ValueError) as error:
        raise ReadError(
            scan.source, f"cannot be registered ({type(error).__name__})", "leave it out"
        ) from error
    return np.array(motion)


def _found(
    moving: NDArray[Any], moving_affine: NDArray[Any], fixed: NDArray[Any], fixed_affine: NDArray[Any]
) -> NDArray[np.float64]:
    """The motion of :func:`rigid`.

    Mattes mutual information (Mattes et al. 2003, https://doi.org/10.1109/TMI.2003.809072) over three
    resolutions, from where the centres of mass meet.
    """
    itk: Any = importlib.import_module("SimpleITK")

    def image(voxels: NDArray[Any], affine: NDArray[Any]) -> Any:
        made = itk.GetImageFromArray(voxels.transpose(2, 1, 0))
        axes = (LPS @ affine)[:3, :3]
        sizes = np.linalg.norm(axes, axis=0)
        made.SetSpacing(tuple(map(float, sizes)))
        made.SetDirection(tuple((axes / sizes).ravel()))
        made.SetOrigin(tuple(map(float, (LPS @ affine)[:3, 3])))
        return made

    still, moved = image(fixed, fixed_affine), image(moving, moving_affine)
    start = itk.CenteredTransformInitializer(
        still, moved, itk.Euler3DTransform(), itk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2, seed=1)
    method.SetInterpolator(itk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=200, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(still, moved)
    # it takes points of the fixed image to points of the moving one
    corners = np.vstack([np.zeros(3), np.eye(3)])
    images = np.array([found.TransformPoint(tuple(map(float, point))) for point in corners])
    to = np.eye(4)
    to[:3, 3] = images[0]
    to[:3, :3] = (images[1:] - images[0]).T
    return np.asarray(np.linalg.inv(LPS @ to @ LPS), np.float64)


def main() -> None:
    """Read the images of :func:`rigid` from the standard input, and write the motion."""
    with np.load(io.BytesIO(sys.stdin.buffer.read())) as images:
        sys.stdout.buffer.write(_found(**images).astype("<f8").tobytes())


if __name__ == "__main__":
    main()
