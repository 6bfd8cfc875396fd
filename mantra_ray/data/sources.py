"""The catalogue of public data sets: where each file lies, its content's hashes, licence and citation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mantra_ray.errors import InputError

FOLDER_VARIABLE = "MANTRA_DATA_DIR"


@dataclass(frozen=True)
class CataloguedFile:
    """A public file, named by its content."""

    name: str
    size: int  # bytes
    sha256: str
    source: str  # where it comes from and, if no address gives these very bytes, how it was made
    licence: str
    citation: str
    url: str = ""  # direct address of these very bytes, if there is one
    md5: str = ""  # the publisher's own checksum, if there is one


@dataclass(frozen=True)
class DataSet:
    """A named set of files; `recipe` says how records are made of them where `--data NAME` alone does not do it."""

    what: str
    files: tuple[CataloguedFile, ...]
    recipe: str = ""


BURDEN = "https://github.com/emdann/GWT_perturbseq_analysis_2025 at 95fe7237"
GENEBAYES = "Backman et al. 2021, Nature 599:628; Zeng et al. 2024 (GeneBayes), Nature Genetics 56:1632"
MORPHIC = (
    CataloguedFile(
        "morphic_ko.npz",
        6_617_420,
        "51d64e00e579257699fab051a46519ef82cd74f300b6dc433703b8e11cd7f77c",
        "https://github.com/morphic-bio/MorPhiC_bulk_RNAseq at 6918e161, results/*/raw/*_DEseq2_raw.tsv stacked, "
        "a row a contrast, genes that all contrasts share",
        "MIT",
        "MorPhiC consortium, Molecular Phenotypes of Null Alleles in Cells",
    ),
    CataloguedFile(
        "dorothea_hs.csv.gz",
        1_713_444,
        "bc867a091e7a9de958130aae798df53a469b850346c52b65e54f62fa7cdf99fd",
        "https://github.com/saezlab/dorothea at 1461fb75, human regulons as tf,confidence,target,mor",
        "GPL-3",
        "Garcia-Alonso et al. 2019, Genome Research 29:1363",
    ),
    CataloguedFile(
        "Lambert_2018_HumanTF.csv",
        96_922,
        "1c10e5b841b02901fdf0a64116a6a75b383aa1a706bae4181ab269fa94ccc799",
        BURDEN + ", metadata/Lambert_2018_HumanTF.csv",
        "MIT",
        "Lambert et al. 2018, Cell 172:650",
        # The commit that added the file, which has not changed since.
        "https://raw.githubusercontent.com/emdann/GWT_perturbseq_analysis_2025/"
        "08bb993d8bcb74638b4035d1819638eb4cd8746d/metadata/Lambert_2018_HumanTF.csv",
    ),
    CataloguedFile(
        "MCH_lof_burden.csv",
        1_822_590,
        "5baaaa7525330c4f725fc71329b1c95f4abd3b22f8449ef900c2897a01eb193c",
        BURDEN + ", src/8_lymphocyte_counts_LoF/input/Backman_2021_86_fullFeatures.per_gene_estimates.tsv as "
        "ensg,symbol,b,se,lower_95,upper_95 with se = (upper - lower) / 3.92",
        "MIT",
        GENEBAYES,
    ),
    CataloguedFile(
        "lymphocyte_lof_burden.csv",
        1_818_263,
        "e5170758f9be2cbc3e6c47c9102d28b503c8144a353103031f18d7ed033b3609",
        BURDEN + ", src/8_lymphocyte_counts_LoF/input/Backman_LymphocyteCount_fullFeatures.per_gene_estimates.tsv as "
        "ensg,symbol,b,se,lower_95,upper_95 with se = (upper - lower) / 3.92",
        "MIT",
        GENEBAYES,
    ),
)

# figshare and Zenodo publish sizes and md5. The sha256 beside them are those that several unrelated public projects
# report for files with that md5; `fetch` checks all three.
REPLOGLE = "https://plus.figshare.com/articles/dataset/20029387"
REPLOGLE_CITATION = "Replogle et al. 2022, Cell 185:2559"
K562_GWPS = CataloguedFile(
    "K562_gwps_normalized_bulk_01.h5ad",
    374_587_922,
    "37e48c474d8b5dead4151f96ea8f5fe7bbe6beb10eeea48685b740c3f74490a2",
    REPLOGLE,
    "CC BY 4.0",
    REPLOGLE_CITATION,
    "https://ndownloader.figshare.com/files/35773217",
    "a3dfaa94ea8724217f5ecb1e14a5f0c8",
)
K562_ESSENTIAL = CataloguedFile(
    "K562_essential_normalized_bulk_01.h5ad",
    79_766_954,
    "c1ca6456c9c9f1aa2b02c496eb64d1dc3e6a852edbd744d682b8d2c95fd36829",
    REPLOGLE,
    "CC BY 4.0",
    REPLOGLE_CITATION,
    "https://ndownloader.figshare.com/files/35780870",
    "30496767641cd2e660ee6ecb5baee132",
)
NORMAN = CataloguedFile(
    "NormanWeissman2019_filtered.h5ad",
    698_680_199,
    "efde6f5301fe256725dce1d980f37bd96a13481a9a16135515897368e631affc",
    "https://zenodo.org/records/13350497 (scPerturb 1.4), of GEO GSE133344",
    "see the source",
    "Norman et al. 2019, Science 365:786; Peidli et al. 2024 (scPerturb), Nature Methods 21:531",
    "https://zenodo.org/records/13350497/files/NormanWeissman2019_filtered.h5ad?download=1",
    "c870e6967d91c017d9da827bab183cd6",
)

CATALOG: dict[str, DataSet] = {
    "sim": DataSet("built-in mechanistic simulator", ()),
    "morphic": DataSet("MorPhiC bulk RNA-seq of 141 knock-outs, with graph, classes and two traits", MORPHIC),
    "k562_gwps": DataSet(
        "K562 genome-wide CRISPRi Perturb-seq, pseudo-bulk", (K562_GWPS,), "mantra data import FILE --preset k562-bulk"
    ),
    "k562_essential": DataSet(
        "K562 CRISPRi Perturb-seq of essential genes, pseudo-bulk",
        (K562_ESSENTIAL,),
        "mantra data import FILE --preset k562-bulk",
    ),
    "norman": DataSet(
        "K562 CRISPRa Perturb-seq of single and paired genes, 111,445 cells",
        (NORMAN,),
        "mantra data import FILE --regulator-column perturbation --control control",
    ),
}


def find_set(name: str) -> DataSet:
    """The catalogued set of that name, or InputError."""
    if name not in CATALOG:
        raise InputError("catalogue", "name", name, f"is not one of {', '.join(CATALOG)}")
    return CATALOG[name]


def data_folder(folder: str, wanted: str, hint: str = "") -> Path:
    """The folder of catalogued files, by default from the environment; InputError, which names `wanted`, if none."""
    folder = folder or os.environ.get(FOLDER_VARIABLE, "")
    if not folder:
        problem = f"name the folder of {wanted} by --data-dir or {FOLDER_VARIABLE}" + (f"; {hint}" if hint else "")
        raise InputError("options", "--data-dir", folder, problem)
    return Path(folder).expanduser()


def advice(entry: CataloguedFile, folder: Path | str = "") -> str:
    """How to get a file by hand: address, size, hashes, licence, and where to put it."""
    md5 = f"; md5 {entry.md5}" if entry.md5 else ""
    address = f"{entry.url}, see {entry.source}" if entry.url else entry.source
    text = f"get it from {address} ({entry.licence}; {entry.size:,} bytes; sha256 {entry.sha256}{md5})"
    return f"{text} and put it in {folder}" if folder else text
