"""Public cohorts as their publishers lay them out, by the names alone: who, when, which sequence, what not.

Each case lists files with what they are: ``person visit sequence``, or ``-`` for what is no image, or
``region person visit``. Persons and visits are compared by who is with whom, not by how they are called.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest

from indexer.discovery.config import find_config
from indexer.discovery.layout import Decision, Item, layout
from indexer.discovery.tokens import stem

PICTURES = (".png", ".jpg", ".jpeg", ".tif")


def planned(files: list[str], above: tuple[str, ...] = ("data",)) -> dict[str, Decision]:
    items = [
        Item((*(p := PurePosixPath(file)).parts[:-1], stem(p.name)), picture=file.endswith(PICTURES))
        for file in files
    ]
    return dict(zip(files, layout(items, above).decisions, strict=True))


def compare(truth: dict[str, str], above: tuple[str, ...] = ("data",)) -> None:
    found = planned(list(truth), above)
    persons: dict[str, set[str]] = defaultdict(set)
    visits: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for file, what in truth.items():
        decision, words = found[file], what.split()
        role = "ignored" if words == ["-"] else "region" if words[0] == "region" else "image"
        assert decision.role == role, (file, decision)
        if role == "ignored":
            continue
        person, visit, *rest = words[1:] if role == "region" else words
        assert decision.person is not None, file
        if role == "image":
            assert decision.sequence == (None if rest == ["?"] else rest[0]), (file, decision)
        persons[person].add(decision.person.patient)
        visits[person, visit].add((decision.person.patient, decision.person.visit))
    assert all(len(names) == 1 for names in persons.values()), persons
    assert len({name for names in persons.values() for name in names}) == len(persons), persons
    assert all(len(names) == 1 for names in visits.values()), visits
    assert len({name for names in visits.values() for name in names}) == len(visits), visits


def four(name: str, who: str, names: str = "t1 t1ce t2 flair") -> dict[str, str]:
    """Files of the four sequences; `name` holds ``{}`` for what each calls them."""
    sequences = ("t1", "t1ce", "t2", "flair")
    return {
        name.replace("{}", called): f"{who} {s}" for called, s in zip(names.split(), sequences, strict=True)
    }


BRATS = "t1n t1c t2w t2f"

MHA = "MR_T1 MR_T1c MR_T2 MR_Flair"
GERMAN = "T1_nativ T1_mit_KM T2 FLAIR"

LAYOUTS = {
    "BraTS-MET": {
        **four("BraTS-MET-00002-000/BraTS-MET-00002-000-{}.nii.gz", "A 0", BRATS),
        "BraTS-MET-00002-000/BraTS-MET-00002-000-seg.nii.gz": "region A 0",
        **four("BraTS-MET-00003-000/BraTS-MET-00003-000-{}.nii.gz", "B 0", BRATS),
        **four("BraTS-MET-00003-001/BraTS-MET-00003-001-{}.nii.gz", "B 1", BRATS),
        "BraTS-MET-00003-001/BraTS-MET-00003-001-seg.nii.gz": "region B 1",
    },
    "BraTS-PED and SSA in one folder": {
        **four("PED/BraTS-PED-00001-000/BraTS-PED-00001-000-{}.nii.gz", "A 0", BRATS),
        "PED/BraTS-PED-00001-000/BraTS-PED-00001-000-seg.nii.gz": "region A 0",
        **four("SSA/BraTS-SSA-00001-000/BraTS-SSA-00001-000-{}.nii.gz", "B 0", BRATS),
        "SSA/BraTS-SSA-00001-000/BraTS-SSA-00001-000-seg.nii.gz": "region B 0",
    },
    "BraTS 2017 and 2019": {
        **four("HGG/Brats17_TCIA_121_1/Brats17_TCIA_121_1_{}.nii.gz", "A 0"),
        "HGG/Brats17_TCIA_121_1/Brats17_TCIA_121_1_seg.nii.gz": "region A 0",
        **four("LGG/Brats17_TCIA_130_1/Brats17_TCIA_130_1_{}.nii.gz", "B 0"),
        **four("HGG/BraTS19_CBICA_AQZ_1/BraTS19_CBICA_AQZ_1_{}.nii.gz", "C 0"),
        **four("HGG/BraTS19_2013_10_1/BraTS19_2013_10_1_{}.nii.gz", "D 0"),
        **four("HGG/BraTS19_2013_1_1/BraTS19_2013_1_1_{}.nii.gz", "E 0"),
    },
    "BraTS-TCGA": {
        **four("TCGA-02-0006/TCGA-02-0006_1996.08.23_{}.nii.gz", "A 0", "t1 t1Gd t2 flair"),
        "TCGA-02-0006/TCGA-02-0006_1996.08.23_GlistrBoost_ManuallyCorrected.nii.gz": "A 0 ?",
        **four("TCGA-02-0009/TCGA-02-0009_1997.06.14_{}.nii.gz", "B 0", "t1 t1Gd t2 flair"),
    },
    "UCSF-ALPTDG": {
        **four("100101/100101_time1_{}.nii.gz", "A 1"),
        "100101/100101_time1_seg.nii.gz": "region A 1",
        **four("100101/100101_time2_{}.nii.gz", "A 2"),
        "100101/100101_time2_seg.nii.gz": "region A 2",
        **four("100102/100102_time1_{}.nii.gz", "B 1"),
        **four("100102/100102_time2_{}.nii.gz", "B 2"),
    },
    "RHUH-GBM": {
        **four("RHUH-0001/0/RHUH-0001_0_{}.nii.gz", "A 0"),
        "RHUH-0001/0/RHUH-0001_0_segmentations.nii.gz": "region A 0",
        "RHUH-0001/0/RHUH-0001_0_adc.nii.gz": "-",
        **four("RHUH-0001/1/RHUH-0001_1_{}.nii.gz", "A 1"),
        **four("RHUH-0001/2/RHUH-0001_2_{}.nii.gz", "A 2"),
        **four("RHUH-0002/0/RHUH-0002_0_{}.nii.gz", "B 0"),
        **four("RHUH-0002/1/RHUH-0002_1_{}.nii.gz", "B 1"),
    },
    "RHUH-GBM, bare": {
        **four("RHUH-0001/0/{}.nii.gz", "A 0"),
        **four("RHUH-0001/1/{}.nii.gz", "A 1"),
        "RHUH-0001/1/segmentation.nii.gz": "region A 1",
        **four("RHUH-0002/0/{}.nii.gz", "B 0"),
        **four("RHUH-0002/1/{}.nii.gz", "B 1"),
    },
    "Yale-Brain-Mets": {
        "YG_0HQ6JHG6B1NT/2012-09-26/YG_0HQ6JHG6B1NT_2012-09-26_FLAIR.nii.gz": "A 1 flair",
        "YG_0HQ6JHG6B1NT/2012-09-26/YG_0HQ6JHG6B1NT_2012-09-26_POST.nii.gz": "A 1 t1ce",
        "YG_0HQ6JHG6B1NT/2012-09-26/YG_0HQ6JHG6B1NT_2012-09-26_T2.nii.gz": "A 1 t2",
        "YG_0HQ6JHG6B1NT/2013-02-07/YG_0HQ6JHG6B1NT_2013-02-07_FLAIR.nii.gz": "A 2 flair",
        "YG_9J4MK0WHQSBS/2012-09-26/YG_9J4MK0WHQSBS_2012-09-26_FLAIR.nii.gz": "B 1 flair",
    },
    "Burdenko, converted": {
        "Burdenko-GBM-PP_001/T1.nii.gz": "A 0 t1",
        "Burdenko-GBM-PP_001/T1C.nii.gz": "A 0 t1ce",
        "Burdenko-GBM-PP_001/FLAIR.nii.gz": "A 0 flair",
        "Burdenko-GBM-PP_001/GTV.nii.gz": "region A 0",
        "Burdenko-GBM-PP_002/T1.nii.gz": "B 0 t1",
        "Burdenko-GBM-PP_002/T1C.nii.gz": "B 0 t1ce",
    },
    "REMBRANDT, skull-stripped": {
        "900-00-5299/2005-04-13/AX_T1_POST.nii.gz": "A 1 t1ce",
        "900-00-5299/2005-04-13/AX_T1_PRE.nii.gz": "A 1 t1",
        "900-00-5299/2005-04-13/AX_T2_FLAIR.nii.gz": "A 1 flair",
        "900-00-5303/2005-04-15/AX_T1_POST.nii.gz": "B 1 t1ce",
        "900-00-5303/2005-04-15/AX_T2.nii.gz": "B 1 t2",
    },
    "CPTAC-GBM, converted": {
        "C3L-00016/11-15-1999-NA-MR BRAIN-21068/AX T1.nii.gz": "A 1 t1",
        "C3L-00016/11-15-1999-NA-MR BRAIN-21068/AX T1 POST.nii.gz": "A 1 t1ce",
        "C3L-00016/04-02-2000-NA-MR BRAIN-11111/AX T1 POST.nii.gz": "A 2 t1ce",
        "C3N-00662/11-15-1999-NA-MR BRAIN-30000/AX T1.nii.gz": "B 1 t1",
    },
    "ReMIND": {
        "ReMIND-001/Preop/ReMIND-001-preop-T1_POST.nrrd": "A pre t1ce",
        "ReMIND-001/Preop/ReMIND-001-preop-T2_FLAIR.nrrd": "A pre flair",
        "ReMIND-001/Preop/ReMIND-001-preop-SEG-tumor-MR-3D_AX_T1_postcontrast.nrrd": "region A pre",
        "ReMIND-001/Intraop/ReMIND-001-intraop-T1_POST.nrrd": "A intra t1ce",
        "ReMIND-002/Preop/ReMIND-002-preop-T1_POST.nrrd": "B pre t1ce",
    },
    "IXI, a folder a sequence": {
        "IXI-T1/IXI002-Guys-0828-T1.nii.gz": "A 0 t1",
        "IXI-T1/IXI012-HH-1211-T1.nii.gz": "B 0 t1",
        "IXI-T2/IXI002-Guys-0828-T2.nii.gz": "A 0 t2",
        "IXI-T2/IXI012-HH-1211-T2.nii.gz": "B 0 t2",
        "IXI-PD/IXI002-Guys-0828-PD.nii.gz": "A 0 pd",
    },
    "OASIS-1": {
        "OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr": "A 1 t1",
        "OAS1_0002_MR1/RAW/OAS1_0002_MR1_mpr-1_anon.hdr": "B 1 t1",
        "OAS1_0002_MR2/RAW/OAS1_0002_MR2_mpr-1_anon.hdr": "B 2 t1",
    },
    "OASIS-3": {
        "OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz": "A 1 t1",
        "OAS30001_MR_d0757/anat2/NIFTI/sub-OAS30001_ses-d0757_run-01_T1w.nii.gz": "A 2 t1",
        "OAS30002_MR_d0371/anat3/NIFTI/sub-OAS30002_ses-d0371_T1w.nii.gz": "B 1 t1",
        "OAS30002_MR_d0371/anat4/NIFTI/sub-OAS30002_ses-d0371_FLAIR.nii.gz": "B 1 flair",
    },
    "ADNI": {
        "ADNI/002_S_0295/MP-RAGE/2006-04-18_08_20_30.0/S13408/"
        "ADNI_002_S_0295_MR_MP-RAGE__br_raw_20060418193713091_1_S13408_I13722.nii": "A 1 t1",
        "ADNI/002_S_0295/MP-RAGE/2007-05-25_07_11_39.0/S32678/"
        "ADNI_002_S_0295_MR_MP-RAGE__br_raw_20070526103139024_1_S32678_I55275.nii": "A 2 t1",
        "ADNI/002_S_0413/MP-RAGE/2006-05-02_12_31_52.0/S13893/"
        "ADNI_002_S_0413_MR_MP-RAGE__br_raw_20060502135427032_1_S13893_I14783.nii": "B 1 t1",
    },
    "ISLES 2022": {
        "rawdata/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_flair.nii.gz": "A 1 flair",
        "rawdata/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_adc.nii.gz": "-",
        "rawdata/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_dwi.nii.gz": "A 1 dwi",
        "derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz": "region A 1",
        "rawdata/sub-strokecase0002/ses-0001/sub-strokecase0002_ses-0001_flair.nii.gz": "B 1 flair",
        "derivatives/sub-strokecase0002/ses-0001/sub-strokecase0002_ses-0001_msk.nii.gz": "region B 1",
    },
    "FeTS": {
        **four("FeTS2022_00000/FeTS2022_00000_{}.nii.gz", "A 0"),
        "FeTS2022_00000/FeTS2022_00000_seg.nii.gz": "region A 0",
        **four("FeTS2022_00002/FeTS2022_00002_{}.nii.gz", "B 0"),
    },
    "EGD, unpacked by subject": {
        **four("SUBJECTS/EGD-0001/{}.nii.gz", "A 0", "T1 T1GD T2 FLAIR"),
        "SUBJECTS/EGD-0001/MASK.nii.gz": "region A 0",
        **four("SUBJECTS/EGD-0002/{}.nii.gz", "B 0", "T1 T1GD T2 FLAIR"),
        "SUBJECTS/EGD-0002/MASK.nii.gz": "region B 0",
    },
    "XNAT": {
        "P0001_MR1/scans/2-T1_mprage/resources/NIFTI/files/image.nii.gz": "A 1 t1",
        "P0001_MR1/scans/5-T2_FLAIR/resources/NIFTI/files/image.nii.gz": "A 1 flair",
        "P0001_MR2/scans/3-T1_mprage/resources/NIFTI/files/image.nii.gz": "A 2 t1",
        "P0002_MR1/scans/2-T1_mprage/resources/NIFTI/files/image.nii.gz": "B 1 t1",
    },
    "HCP": {
        "100307/unprocessed/3T/T1w_MPR1/100307_3T_T1w_MPR1.nii.gz": "A 0 t1",
        "100307/unprocessed/3T/T2w_SPC1/100307_3T_T2w_SPC1.nii.gz": "A 0 t2",
        "100307/T1w/T1w_acpc_dc_restore.nii.gz": "-",
        "100408/unprocessed/3T/T1w_MPR1/100408_3T_T1w_MPR1.nii.gz": "B 0 t1",
        "100408/unprocessed/3T/T2w_SPC1/100408_3T_T2w_SPC1.nii.gz": "B 0 t2",
        "100408/T1w/T1w_acpc_dc_restore.nii.gz": "-",
    },
    "series by number in folders of the same name": {
        "S001/004_T1_MPRAGE/004_T1_MPRAGE.nii.gz": "A 0 t1",
        "S001/012_T1_MPRAGE_GD/012_T1_MPRAGE_GD.nii.gz": "A 0 t1ce",
        "S002/004_T1_MPRAGE/004_T1_MPRAGE.nii.gz": "B 0 t1",
        "S002/007_T2_FLAIR/007_T2_FLAIR.nii.gz": "B 0 flair",
    },
    "dcm2niix, a folder a person": {
        "anna/3_t1_mprage_sag.nii.gz": "A 0 t1",
        "anna/5_t2_flair_tra.nii.gz": "A 0 flair",
        "anna/7_t1_mprage_sag_KM.nii.gz": "A 0 t1ce",
        "berta/2_t1_mprage_sag.nii.gz": "B 0 t1",
        "berta/6_t2_flair_tra.nii.gz": "B 0 flair",
    },
    "BIDS with acq and run": {
        "sub-01/ses-pre/anat/sub-01_ses-pre_acq-lowres_run-1_T1w.nii.gz": "A pre t1",
        "sub-01/ses-pre/anat/sub-01_ses-pre_acq-highres_ce-gd_run-1_T1w.nii.gz": "A pre t1ce",
        "sub-01/ses-post/anat/sub-01_ses-post_T1w.nii.gz": "A post t1",
        "sub-02/ses-pre/anat/sub-02_ses-pre_FLAIR.nii.gz": "B pre flair",
    },
    "BIDS without sessions, two data sets": {
        "ds1/sub-01/anat/sub-01_T1w.nii.gz": "A 0 t1",
        "ds1/sub-02/anat/sub-02_T1w.nii.gz": "B 0 t1",
        "ds2/sub-01/anat/sub-01_T1w.nii.gz": "C 0 t1",
    },
    "time points t0, t1 in names": {
        **four("P001_t0_{}.nii.gz", "A 0", "t1 t1ce t2 flair"),
        **four("P001_t1_{}.nii.gz", "A 1", "t1 t1ce t2 flair"),
        **four("P002_t0_{}.nii.gz", "B 0", "t1 t1ce t2 flair"),
    },
    "time points t0, t1 as folders": {
        **four("P001/t0/{}.nii.gz", "A 0", "T1 T1ce T2 FLAIR"),
        **four("P001/t1/{}.nii.gz", "A 1", "T1 T1ce T2 FLAIR"),
        **four("P002/t0/{}.nii.gz", "B 0", "T1 T1ce T2 FLAIR"),
    },
    "visits above persons": {
        **four("baseline/P001/{}.nii.gz", "A 0", "T1 T1ce T2 FLAIR"),
        **four("followup/P001/{}.nii.gz", "A 1", "T1 T1ce T2 FLAIR"),
        **four("baseline/P002/{}.nii.gz", "B 0", "T1 T1ce T2 FLAIR"),
    },
    "the same numbers at two sites": {
        **four("siteA/001/{}.nii.gz", "A 0"),
        **four("siteA/002/{}.nii.gz", "B 0"),
        **four("siteB/001/{}.nii.gz", "C 0"),
    },
    "the same numbers in two classes": {
        **four("HGG/Pat1/{}.nii.gz", "A 0"),
        **four("LGG/Pat1/{}.nii.gz", "B 0"),
        **four("LGG/Pat2/{}.nii.gz", "C 0"),
    },
    "persons by name": {
        "Miller/brain/T1.nii.gz": "A 0 t1",
        "Miller/brain/FLAIR.nii.gz": "A 0 flair",
        "Smith/brain/T1.nii.gz": "B 0 t1",
        "Smith/brain/mask.nii.gz": "region B 0",
    },
    "flat": {
        **four("case_01_{}.nii.gz", "A 0"),
        "case_01_seg.nii.gz": "region A 0",
        **four("case_02_{}.nii.gz", "B 0"),
    },
    "sequence first": {
        **four("{}_case01.nii.gz", "A 0"),
        **four("{}_case02.nii.gz", "B 0"),
    },
    "a folder a sequence": {
        **four("{}/001.nii.gz", "A 0", "T1 T1ce T2 FLAIR"),
        **four("{}/002.nii.gz", "B 0", "T1 T1ce T2 FLAIR"),
        "masks/001.nii.gz": "region A 0",
    },
    "Kaggle yes and no": {
        "yes/Y1.jpg": "A 0 ?",
        "yes/Y2.JPG.jpg": "B 0 ?",
        "no/1 no.jpeg": "C 0 ?",
        "no/N1.jpg": "D 0 ?",
    },
    "Br35H": {
        "yes/y0.jpg": "A 0 ?",
        "yes/y1.jpg": "B 0 ?",
        "no/no0.jpg": "C 0 ?",
        "no/no1.jpg": "D 0 ?",
        "pred/pred0.jpg": "E 0 ?",
    },
    "BRATS 2015": {
        **four("HGG/brats_tcia_pat153_0002/VSD.Brain.XX.O.{}.1/VSD.Brain.XX.O.{}.1.mha", "A 2", MHA),
        **four("HGG/brats_tcia_pat153_0109/VSD.Brain.XX.O.{}.2/VSD.Brain.XX.O.{}.2.mha", "A 109", MHA),
        **four("HGG/brats_tcia_pat130_0001/VSD.Brain.XX.O.{}.3/VSD.Brain.XX.O.{}.3.mha", "B 1", MHA),
        **four("LGG/brats_2013_pat0001_1/VSD.Brain.XX.O.{}.4/VSD.Brain.XX.O.{}.4.mha", "C 1", MHA),
    },
    "BraTS-Reg": {
        **four("BraTSReg_001/BraTSReg_001_00_0000_{}.nii.gz", "A 0"),
        **four("BraTSReg_001/BraTSReg_001_01_0106_{}.nii.gz", "A 1"),
        **four("BraTSReg_002/BraTSReg_002_00_0000_{}.nii.gz", "B 0"),
        **four("BraTSReg_002/BraTSReg_002_01_0321_{}.nii.gz", "B 1"),
    },
    "MSSEG 2016": {
        **four("Center_01/Patient_01/Raw_Data/{}.nii.gz", "A 0", "T1 GADO T2 FLAIR"),
        "Center_01/Patient_01/Raw_Data/DP.nii.gz": "A 0 pd",
        "Center_01/Patient_01/Preprocessed_Data/GADO_preprocessed.nii.gz": "-",
        "Center_01/Patient_01/Masks/Consensus.nii.gz": "region A 0",
        "Center_01/Patient_01/Masks/Brain_Mask.nii.gz": "-",
        **four("Center_07/Patient_01/Raw_Data/{}.nii.gz", "B 0", "T1 GADO T2 FLAIR"),
    },
    "HCP, preprocessed only": {
        "100307/T1w/T1w_acpc_dc_restore.nii.gz": "A 0 t1",
        "100307/T1w/T2w_acpc_dc_restore.nii.gz": "A 0 t2",
        "100307/T1w/T1w_acpc_dc_restore_brain.nii.gz": "-",
        "100307/MNINonLinear/T1w_restore.nii.gz": "-",
        "100307/MNINonLinear/T2w_restore.nii.gz": "-",
        "100307/MNINonLinear/T1w.nii.gz": "-",
        "100408/T1w/T1w_acpc_dc_restore.nii.gz": "B 0 t1",
    },
    "OASIS-1, with what was made of it": {
        "OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr": "A 1 t1",
        "OAS1_0001_MR1/PROCESSED/MPRAGE/SUBJ_111/OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr": "-",
        "OAS1_0002_MR1/RAW/OAS1_0002_MR1_mpr-1_anon.hdr": "B 1 t1",
        "OAS1_0002_MR1/PROCESSED/MPRAGE/SUBJ_111/OAS1_0002_MR1_mpr_n4_anon_sbj_111.hdr": "-",
        "OAS1_0002_MR2/RAW/OAS1_0002_MR2_mpr-1_anon.hdr": "B 2 t1",
        "OAS1_0002_MR2/PROCESSED/MPRAGE/SUBJ_111/OAS1_0002_MR2_mpr_n4_anon_sbj_111.hdr": "-",
    },
    "sequences glued to other words": {
        "crossmoda_1_ceT1.nii.gz": "A 0 t1ce",
        "crossmoda_106_hrT2.nii.gz": "B 0 t2",
        "100101A_T2.nii.gz": "C 0 t2",
        "100101A_T2Synth.nii.gz": "-",
        "patient01_T1WKS.nii.gz": "D 0 t1ce",
        "patient01_T1W.nii.gz": "D 0 t1",
        "patient01_flairmask.nii.gz": "region D 0",
    },
    "FreeSurfer": {
        "subjects/bert/mri/orig.mgz": "A 0 t1",
        "subjects/bert/mri/orig/001.mgz": "-",
        "subjects/bert/mri/T1.mgz": "-",
        "subjects/bert/mri/norm.mgz": "-",
        "subjects/bert/mri/wm.mgz": "-",
        "subjects/bert/mri/aseg.mgz": "-",
        "subjects/ernie/mri/orig.mgz": "B 0 t1",
        "subjects/ernie/mri/orig/001.mgz": "-",
        "subjects/ernie/mri/T1.mgz": "-",
        "subjects/ernie/mri/brain.mgz": "-",
    },
    "what tools leave beside images": {
        "pat01/T1.nii.gz": "A 0 t1",
        "pat01/T1_InverseWarped.nii.gz": "-",
        "pat01/T1_brain_pve_0.nii.gz": "-",
        "pat01/T1_1Warp.nii.gz": "-",
        "pat01/T1_bet_mask.nii.gz": "region A 0",
        "pat02/T1.nii.gz": "B 0 t1",
        "pat02/T1_InverseWarped.nii.gz": "-",
    },
    "German": {
        **four("Müller, Jürgen/prä OP/{}.nii.gz", "A pre", GERMAN),
        **four("Müller, Jürgen/post OP/{}.nii.gz", "A post", GERMAN),
        **four("Özdemir Ayşe/prä OP/{}.nii.gz", "B pre", GERMAN),
        **four("Straße 3/post OP/{}.nii.gz", "C post", GERMAN),
    },
    "a folder that names all": {
        "Images_Masks_2024/Images/Radio-1-0_image_ss.nii.gz": "A 0 ?",
        "Images_Masks_2024/Images/Radio-2-0_image_ss.nii.gz": "B 0 ?",
        "Images_Masks_2024/Masks/Radio-2-0_mask_tumor.nii.gz": "region B 0",
    },
    "folders of classes with sequences": {
        "Astrocitoma T1/01.jpeg": "A 0 t1",
        "Neurocitoma T1/01.jpeg": "B 0 t1",
        "Neurocitoma T2/02.jpeg": "C 0 t2",
        "_NORMAL T1/01.jpeg": "D 0 t1",
    },
    "pictures with masks in parallel folders": {
        "images/1.png": "A 0 ?",
        "images/2.png": "B 0 ?",
        "masks/1.png": "region A 0",
        "masks/2.png": "region B 0",
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_layout_is_understood(name: str) -> None:
    compare(LAYOUTS[name])


def test_outlines_that_only_voxels_show_split_nobody() -> None:
    images = [("raw", "Dataset1", "imagesTr", f"BraTS_{n:05d}_{c}") for n in (1, 2) for c in ("t1", "t2")]
    predicted = [("results", "fold_0", f"BraTS_{n:05d}") for n in (1, 2)]
    items = [Item(path) for path in (*images, *predicted)]
    laid = layout(items, look=lambda i, images: "region" if i >= 4 else "image")
    assert [d.role for d in laid.decisions] == ["image"] * 4 + ["region"] * 2
    assert [d.person for d in laid.decisions[4:]] == [laid.decisions[0].person, laid.decisions[2].person]
    assert len({d.person for d in laid.decisions}) == 2
    assert not laid.doubts


def test_letters_behind_a_number_are_asked_about(tmp_path: Path) -> None:
    items = [Item((f"10010{who}", f"10010{who}_T1")) for who in ("1A", "1B", "2A")]
    laid = layout(items)
    assert len({d.person for d in laid.decisions}) == 3
    rule = laid.doubts[0].partition("e.g. ")[2]
    (tmp_path / "cbir.json").write_text(rule)
    config = find_config(tmp_path)
    assert config is not None
    said = {"patient": "100101", "visit": "B", "sequence": "T1post"}
    assert config.said(tmp_path / "set/100101B/100101B_T1post") == said
    assert "100101A, 100101B" in str(laid.doubts)
    assert "100102A" not in str(laid.doubts)
