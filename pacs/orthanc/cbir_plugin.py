# Orthanc plugin of cbir: a button in Orthanc Explorer, and the way from Orthanc to the cbir service.
# Copyright (C) 2025 the authors of cbir
#
# This program is free software: you can redistribute it and/or modify it under the terms of the GNU
# Affero General Public License as published by the Free Software Foundation, either version 3 of the
# License, or (at your option) any later version. It is distributed in the hope that it will be useful,
# but WITHOUT ANY WARRANTY; without even the implied warranty of MERCHANTABILITY or FITNESS FOR A
# PARTICULAR PURPOSE. See the GNU Affero General Public License for more details: LICENSE beside this file.
#
# Orthanc's plugin interface asks for this licence. The service that the plugin talks to over HTTP is a
# program of its own under another licence. Research use only, not a medical device.
"""Glue between Orthanc and the cbir service; needs nothing but Python and Orthanc.

Settings, in Orthanc's configuration as ``"Cbir": {"Url": …, "Token": …, "Timeout": …}`` or in the
environment as ``CBIR_URL``, ``CBIR_TOKEN``, ``CBIR_TIMEOUT``, which win. The token needs the role
``write``. Who may use Orthanc may ask the service through it; what the service holds of cases can
be read that way, and nothing can be changed but by storing a report.

====================  ========================================================================
``/cbir/ui/viewer``   the viewer; what it loads lies below ``/cbir/ui/``
``/cbir/similar``     cases similar to a series or a study: ``GET ?series=ID&k=10``, ``GET ?study=ID``,
                      or ``POST`` as ``/query``
``/cbir/volume``      voxels of a case: ``GET ?case=ID&scan=NUMBER``
====================  ========================================================================
"""

import http.client
import json
import os
import re
import threading
import urllib.parse

import orthanc

SETTINGS = json.loads(orthanc.GetConfiguration()).get("Cbir", {})


def setting(name, default):
    """A setting from the environment or Orthanc's configuration."""
    return os.environ.get("CBIR_" + name.upper()) or SETTINGS.get(name, default)


SERVICE = urllib.parse.urlsplit(setting("Url", "http://127.0.0.1:8043"))
TOKEN = setting("Token", "")
TIMEOUT = float(setting("Timeout", 150))

# what a browser may reach with our token
READ = re.compile(r"(viewer|info|static/.+|cases/.+|queries/.+)")
ASK = re.compile(r"(query|queries/[^/]+|report|sr)")
OURS = ("content-type", "content-length", "connection", "transfer-encoding", "date", "server")
TEXTUAL = re.compile(r"text/|application/json")

BUTTON = """
(function () {
  function find(id, what) {
    window.open('../cbir/ui/viewer#' + (what || 'series') + '=' + id, '_blank', 'noopener');
  }

  function choose(study) {
    $.getJSON('../studies/' + study + '/series', function (all) {
      var series = all.filter(function (one) { return one.MainDicomTags.Modality === 'MR'; });
      if (!series.length) { alert('This study has no MR series.'); return; }
      if (series.length === 1) { find(series[0].ID); return; }
      series.sort(function (a, b) { return b.Instances.length - a.Instances.length; });
      var list = $('#cbir-choice').empty();
      list.append('<li data-role="list-divider">Similar to what?</li>');
      $('<a href="#">').text('all sequences together').appendTo($('<li>').appendTo(list))
        .click(function (event) { event.preventDefault(); find(study, 'study'); });
      series.forEach(function (one) {
        var tags = one.MainDicomTags;
        var name = tags.SeriesDescription || tags.ProtocolName || 'series ' + (tags.SeriesNumber || '');
        $('<a href="#">').text(name + ' (' + one.Instances.length + ')').appendTo($('<li>').appendTo(list))
          .click(function (event) { event.preventDefault(); find(one.ID); });
      });
      list.listview('refresh');
    });
  }

  $.each({series: function (id) { find(id); }, study: choose}, function (page, act) {
    $('#' + page).live('pagebeforecreate', function () {
      $('#' + page + '-info').after($('<a href="#" data-role="button" data-theme="e" data-icon="search">')
        .attr('id', 'cbir-' + page).attr('title', 'cbir: research use only').text('Find similar cases')
        .click(function (event) { event.preventDefault(); act($.mobile.pageData.uuid); }));
      if (page === 'study') {
        $('#cbir-study').after('<ul id="cbir-choice" data-role="listview" data-inset="true" data-theme="d">');
      }
    });
  });
  $('#study').live('pagebeforeshow', function () { $('#cbir-choice').empty(); });
})();
"""

# the address of the page must end below /ui/, and Orthanc does not say whether it ended in a slash
MOVED = """<!doctype html><title>cbir</title>
<script>location.replace(location.pathname.replace(/[/]*$/, '/viewer') + location.hash)</script>"""

DOWN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>cbir is not available</title>
<body style="font: 16px sans-serif; margin: 3em auto; max-width: 36em">
<h1>The search for similar cases is not available</h1>
<p>Orthanc works, but the cbir service behind it does not answer. Try again in a moment; if it stays
like this, tell those who run it: <code>systemctl status cbir</code>.</p>
<p>Research use only, not a medical device.</p></body></html>"""


def ask(method, path, body=None, headers=None):
    """Status, headers and body of the service's answer; the GIL is free while the socket blocks."""
    kind = http.client.HTTPSConnection if SERVICE.scheme == "https" else http.client.HTTPConnection
    connection = kind(SERVICE.hostname, SERVICE.port, timeout=TIMEOUT)
    try:
        headers = dict(headers or {})
        if TOKEN:
            headers["Authorization"] = "Bearer " + TOKEN
        connection.request(method, SERVICE.path.rstrip("/") + "/" + path, body, headers)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()
    finally:
        connection.close()


def forward(output, request, method, path, body=None, content_type=None):
    """Answer with what the service answers."""
    accept = request["headers"].get("accept", "*/*")
    headers = {"Accept": accept}
    if "x-forwarded-for" in request["headers"]:  # from the proxy in front, for the audit trail
        headers["X-Forwarded-For"] = request["headers"]["x-forwarded-for"]
    if content_type:
        # Orthanc keeps multipart/form-data for its own upload page, so uploads come under another name
        headers["Content-Type"] = content_type.replace("multipart/x-form-data", "multipart/form-data")
    try:
        status, given, data = ask(method, path, body, headers)
    except (OSError, http.client.HTTPException) as error:
        orthanc.LogWarning(f"cbir: the service does not answer ({type(error).__name__})")
        output.SetHttpHeader("Retry-After", "5")
        if "text/html" in accept:
            return fail(output, 503, DOWN, "text/html")
        return fail(output, 503, json.dumps({"detail": "the cbir service does not answer"}))
    mime = "application/octet-stream"
    for name, value in given:
        if name.lower() == "content-type":
            mime = value
        elif name.lower() not in OURS:
            output.SetHttpHeader(name, value)
    if status == 200:
        output.AnswerBuffer(data, mime)
    else:
        text = data.decode("utf-8", "replace") if TEXTUAL.match(mime) else ""
        fail(output, status, text, mime)


def fail(output, status, text, mime="application/json"):
    """Answer with a status other than 200."""
    output.SetHttpHeader("Content-Type", mime)
    output.SendHttpStatus(status, text, len(text.encode("utf-8")))


def refused(output, request):
    """Refuse what another site's page sends through a user's browser."""
    headers = request["headers"]
    if request["method"] == "GET":
        return False
    origin = headers.get("origin")
    foreign = origin is not None and urllib.parse.urlsplit(origin).netloc != headers.get("host")
    if foreign or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        fail(output, 403, json.dumps({"detail": "requests from other sites are refused"}))
        return True
    return False


def query_string(request, drop=()):
    """The request's arguments, encoded; Orthanc gives them as they came."""
    pairs = [(name, urllib.parse.unquote(value)) for name, value in request.get("get", {}).items()]
    return urllib.parse.urlencode([pair for pair in pairs if pair[0] not in drop])


def ui(output, uri, **request):
    """The viewer, and what it asks for."""
    path = request["groups"][0].strip("/")
    method = request["method"]
    if not path:
        return output.AnswerBuffer(MOVED, "text/html")
    allowed = {"GET": READ, "POST": ASK}.get(method)
    if allowed is None:
        return output.SendMethodNotAllowed("GET,POST")
    if not allowed.fullmatch(path) or ".." in path.split("/"):
        return fail(output, 404, json.dumps({"detail": "there is nothing here"}))
    if refused(output, request):
        return None
    target = urllib.parse.quote(path)
    if query := query_string(request):
        target += "?" + query
    return forward(
        output, request, method, target, request.get("body"), request["headers"].get("content-type")
    )


def similar(output, uri, **request):
    """A query."""
    if request["method"] not in ("GET", "POST"):
        return output.SendMethodNotAllowed("GET,POST")
    if refused(output, request):
        return None
    if request["method"] == "POST":
        body, kind = request["body"], request["headers"].get("content-type")
    else:
        body, kind = query_string(request), "application/x-www-form-urlencoded"
    return forward(output, request, "POST", "query", body, kind)


def volume(output, uri, **request):
    """The voxels of a case."""
    if request["method"] != "GET":
        return output.SendMethodNotAllowed("GET")
    case = urllib.parse.unquote(request["get"].get("case", ""))
    if not case or ".." in case.split("/"):
        return fail(output, 422, json.dumps({"detail": "name a case: ?case=ID"}))
    target = f"cases/{urllib.parse.quote(case)}/volume.nii.gz"
    if query := query_string(request, drop=("case",)):
        target += "?" + query
    return forward(output, request, "GET", target)


WORTH_A_LOOK = threading.Event()


def changed(change, level, resource):
    """Orthanc waits for this callback: only raise a flag."""
    kinds = orthanc.ChangeType
    if change == kinds.ORTHANC_STARTED or (
        level == orthanc.ResourceType.SERIES and change in (kinds.STABLE_SERIES, kinds.DELETED)
    ):
        WORTH_A_LOOK.set()


def nudge():
    """Tell the service that something has changed. It reads Orthanc's change log, so one lost is no harm."""
    while True:
        WORTH_A_LOOK.wait()
        WORTH_A_LOOK.clear()
        try:
            ask("POST", "pacs/nudge")
        except (OSError, http.client.HTTPException) as error:
            orthanc.LogInfo(f"cbir: the service does not answer ({type(error).__name__})")


orthanc.RegisterRestCallback("/cbir/ui(.*)", ui)
orthanc.RegisterRestCallback("/cbir/similar", similar)
orthanc.RegisterRestCallback("/cbir/volume", volume)
orthanc.RegisterOnChangeCallback(changed)
orthanc.ExtendOrthancExplorer(BUTTON)
orthanc.SetDescription("Finds similar graded cases with cbir. Research use only, not a medical device.")
orthanc.SetRootUri("/cbir/ui/viewer")
threading.Thread(target=nudge, name="cbir", daemon=True).start()
