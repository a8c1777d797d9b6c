"""cbir beside a PACS: the Orthanc plugin, its configuration, and an installation to try (``make pacs``)."""
