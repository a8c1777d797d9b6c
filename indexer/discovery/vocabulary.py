"""What the tokens of names mean, where they mean anything; those of sequences are in the one table of all.

Words are hints. Structure (:mod:`indexer.discovery.people`) decides who is who, and voxels
(:mod:`indexer.discovery.content`) decide what is a mask where words leave a doubt.
"""

from __future__ import annotations

import re
from enum import Enum

from indexer import vocabulary


class Kind(Enum):
    """What a token is taken for."""

    SEQUENCE = "sequence"
    CONTRAST = "contrast"
    SERIES = "series"  # raw diffusion or perfusion, of which maps are computed
    MAP = "map"
    REGION = "region"
    TARGET = "target"  # what an outline is of
    TISSUE = "tissue"  # what a mask is of that is no outline
    PREPARATION = "preparation"
    PLAIN = "plain"  # says that nothing was done
    PROTOCOL = "protocol"  # how it was acquired: no two of these are copies of each other
    CONTAINER = "container"  # says nothing
    LOCALIZER = "localizer"
    ENTITY = "entity"  # a pair of key and value, as in BIDS
    SUBJECT = "subject"  # an entity that names the person
    VISIT = "visit"
    NUMBER = "number"
    OPAQUE = "opaque"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SEQUENCES = vocabulary.named("t1", "t1ce", "t2", "flair", "pd", "swi", "t2star", "angio", "stir", "pet")
"""Tokens (in lower case) and the sequence each stands for."""

WEAK_SEQUENCES = vocabulary.techniques()
"""Techniques that stand for a sequence where no token names one."""

CONTRAST = _words(vocabulary.GIVEN.names)
AGENTS = _words("gado gadolinium gad postcontrast postgd postgad")
"""Contrast agents, which stand for T1 after contrast where no sequence is named."""
AFTER, BEFORE = _words("post"), _words(vocabulary.PLAIN.names)
"""Before and after contrast, if they stand beside T1 and nothing else is before or after."""

PREFIXES = _words("ax axial sag sagittal cor coronal tra trans 2d 3d hr hires tse fse")
"""Words of protocols that are written without a space before a sequence: ``hrT2``, ``axFLAIR``."""

SERIES = vocabulary.named("dwi", "perf", "bold", "m0")
MAPS = frozenset(vocabulary.named("adc", "map"))
SERIES_MAPS = _words(
    """ad rd tr l1 l2 l3 v1 v2 v3 mo s0 ph pe ve vp auc rcbv fa md ap ga cs dt0 b0 peak trace"""
)
"""Maps where a raw series is named beside them (``DTI_FA``, ``DSC_PH``)."""

REGIONS = _words(
    """seg segm segment segs segmentation segmentations segmented mask masks label labels labelmap
    labelmaps roi rois gtv gtvs ctv ptv contour contours outline outlines delineation annotation
    annotations groundtruth gt truth dseg maskfile segmentationmask annotator rater consensus staple voi
    vois tumormask tumourmask lesionmask tumorseg tumourseg lesionseg tumorroi finalseg maskimage msk
    segmask autoseg manualseg manualmask"""
)
TARGETS = _words(
    """tumor tumour tumors tumours lesion lesions wt gtv gtvs ctv ptv edema oedema necrosis ncr enhancing
    nonenhancing metastasis metastases mets met resection cavity infarct stroke hemorrhage haemorrhage
    wmh plaque tumormask tumourmask lesionmask tumorseg tumourseg lesionseg tumorroi tumorcore et tc
    whole glioma"""
)
TISSUES = _words(
    """brain brains parenchyma tissue tissues skull head wm gm csf ventricle ventricles aseg aparc wmparc
    ribbon hippocampus cortex cortical subcortical brainmask brainseg headmask foreground body vessel
    vessels organ brainstem cerebellum whitematter greymatter graymatter lobes parcellation parc nucleus
    nuclei fast synthseg"""
)
MASKS_ALONE = _words(
    """brainmask headmask aseg aparc wmparc ribbon parcellation dkt synthseg brainseg filled"""
)
"""Brain and tissue masks that need no second word."""

PREPARATIONS = _words(
    """bias biascorr biascorrected n3 n4 n4bias bfc bc unstripped nonstripped stripped strip ss
    skullstripped skullstrip noskull nostrip bet hdbet masked defaced deface anon reg registered
    registration coreg coregistered rigid affine resampled resample rsl iso isotropic norm normalized
    normalised zscore histmatch preproc preprocessed preprocessing processed proc warped mni mni152
    mninonlinear icbm152 sri
    sri24 atlas atlases talairach r2s reoriented denoised dn corrected corr smooth smoothed cropped crop
    eddy noreg topup unwarped inversewarped transformed aligned interpolated superresolution sr super fmriprep
    freesurfer cat12 fsl spm template standardized standardised coreged bfcorrected derived derivative
    derivatives reconstructed synthetic synth inpainted voided average averaged avg anonymized
    anonymised conformed conform nu intensity intensities lps ras rai las lpi unbiased debiased acpc dc
    restore brain brains final skull head mean"""
)
TEMPLATE = re.compile(r"(?:space-)?(?:mni|icbm|sri|tal|atlas)", re.IGNORECASE)
"""How preparations begin that bend a brain to fit another's."""

PLAIN = _words(
    """native nativ orig original originals raw rawdata unprocessed rawavg source sourcedata origspace"""
)

PROTOCOL = _words(
    """3t 7t 15t 1t ax axial sag sagittal cor coronal tra trans transverse transversal 3d 2d tse fse se gre
    ge ffe space cube vista fast fs fatsat fat sat spin echo ir turbo haste blade propeller hr hires
    highres lowres weighted w wi image multi thin thick isovoxel grappa irfspgr tir de em me mb nd dis3d
    dis2d pat2 p2 iso1 wip head neck brain mr mri ms obl oblique seq quick dixon we wo wos with without
    fov mri1 rms stealth nav navigation mit ohne avec sans con sin senza kontrastmittel"""
)

CONTAINERS = _words(
    """nifti nii niftis niigz dicom dicoms dcm dcms files file data dataset datasets images image imgs img
    scans resources resource anat mri func structural struct training train test testing val valid
    validation tr ts release collection pkg imaging series output outputs input inputs all folder
    archive download downloads part public open challenge cohort study studies subset mr pack packaged
    package miccai asnr volumes volume vol mha mgz nrrd png jpg jpeg tif tiff slices slice pictures db
    database unzipped extracted sequences sequence automated automatic approx manual semiautomatic
    version released bilder aufnahmen bild daten datensatz datos imagenes donnees immagini"""
)

IMAGES = _words("image images imgs img imagestr imagests imagesval volumes pictures scans")
"""Words of folders that hold images, whatever else is said above."""

LOCALIZERS = frozenset(vocabulary.named("localizer"))

GROUPS = re.compile(
    r"(?:site|cent(?:er|re)|hospital|institution|scanner|batch|part|fold|group|grp|split|set|dataset|data|task|"
    r"release|version|v|class|grade|cohort|collection|ds|vendor|field|train\w*|test\w*|val\w*|chunk|zip|"
    r"volume|disc|disk|cd|dvd|manifest|miccai|phase)[-_ ]?\d+(?:\D.*)?",
    re.IGNORECASE,
)
"""Names that hold many people."""

PERSONS = re.compile(
    r"(?:patient|pat|subject|subj|sub|case|participant|person|pt|proband|volunteer|control|ctrl)"
    r"[-_ ]?(?:id|no|nr)?[-_ ]?\d+(?:\D.*)?",
    re.IGNORECASE,
)
"""Names of one person."""

ANYTHING = re.compile(
    r"(?:im|img|image|scan|ser|series|s|i|se|vol|volume|file|run|echo|frame|slice|study|st|exam|nii|acq|"
    r"dicom|mr|res|resource|assessor|reconstruction)?[-_ ]?\d{0,6}",
    re.IGNORECASE,
)
"""Names that a machine numbers: of a person only where nothing above has a name."""

CLASSES = _words(
    """hgg lgg hg lg gbm glioma gliomas meningioma pituitary tumor tumour notumor notumour no yes
    healthy normal
    abnormal control controls patient patients astrocytoma oligodendroglioma oligoastrocytoma ependymoma
    medulloblastoma glioblastoma metastasis metastases schwannoma neurocytoma carcinoma papilloma
    germinoma astrocitoma ependimoma meduloblastoma neurocitoma papiloma ganglioglioma granuloma tuberculoma
    benign malignant positive negative ad cn mci emci lmci demented nondemented mild moderate
    verymild mildlydemented dementia stroke hemorrhage ms lesion lesions lowgrade highgrade low high
    grade ii iii iv i adenoma lymphoma pcnsl dmg dipg none cancer"""
)
"""Words of folders whose images are of one class."""

SPLITS = _words("train training trainset test testing testset val valid validation dev holdout tr ts eval")

_VISIT_WORD = (
    r"ses|session|visit|vis|week|wk|month|mon|mo|year|yr|day|timepoint|time|tp|fu|fup|follow|followup|baseline|bl|"
    r"screening|preop|postop|intraop|preoperative|postoperative|pretreatment|posttreatment|postrt|prert|"
    r"initial|recurrence|relapse|progression|diagnosis|early|late|prebaseline|visita|examdate|presurgery|"
    r"postsurgery|presurgical|postsurgical|pr(?:ä|ae)op(?:erativ)?|postoperativ|verlauf|nachsorge|kontrolle|nadir|discharge|admission|day0"
)
VISIT = re.compile(rf"(?:{_VISIT_WORD})(?:\d+[a-z]?)?", re.IGNORECASE)
"""A token that names a visit: week044, FU007d, baseline, Timepoint."""

NUMBERED_VISIT = re.compile(r"(?:v|d|m|y|w|mr)\d{1,4}", re.IGNORECASE)

SLICE = re.compile(r"slice[-_ ]?(\d+)", re.IGNORECASE)
"""Name of a numbered slice: slice-001, slice_2, slice003."""

DATE = re.compile(
    r"(?:19|20)\d{2}([-._]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T ]?\d{2}[_:]?\d{2}[_:]?\d{2}(?:\.\d+)?)?"
    r"|(?:0[1-9]|[12]\d|3[01])([-._])(?:0[1-9]|[12]\d|3[01])\2(?:19|20)\d{2}"
)
"""A date, with the time or without it."""

ENTITIES = _words(
    """sub ses task acq ce rec dir run mod echo flip inv mt part space res den label desc split recording
    chunk hemi proc sample trc stain tracksys atlas from to mode"""
)
PREPARING = _words("space res den desc proc from to mode hemi rec atlas")
"""Entities that tell a copy from its original."""
