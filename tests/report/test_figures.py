import subprocess
import sys
import threading

from mmfuse.report.charts import share_heatmap


def test_drawing_works_off_the_main_thread(tmp_path):
    thread = threading.Thread(target=share_heatmap, args=({"rgb": {3: 1.0}}, tmp_path / "a.png"))
    thread.start()
    thread.join()
    assert (tmp_path / "a.png").exists()


def test_matplotlib_is_imported_only_when_drawing_and_pyplot_never(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mmfuse.report.charts import share_heatmap;"
        "assert 'matplotlib' not in sys.modules;"
        f"share_heatmap({{'rgb': {{3: 1.0}}}}, Path({str(tmp_path / 'a.png')!r}));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
