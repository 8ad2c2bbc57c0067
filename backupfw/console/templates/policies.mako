<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Policies</%def>
<h1>Policies</h1>
% if may_create:
<p><a class="button" href="${base}/policies/new">New policy</a></p>
% endif
% if not policies:
<p>There is no backup policy: nothing is backed up by itself.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">Policy</th><th scope="col">Schedule</th><th scope="col">Next run</th><th scope="col">Volumes</th><th scope="col">Keeps</th></tr></thead>
<tbody>
% for one in policies:
<tr>
<th scope="row"><a href="${base}/policies/${one.id}" title="${one.id}">${shown.named(one.display_name, one.id)}</a>
% if everywhere:
<small>project ${one.project_id}</small>
% endif
</th>
<td><code>${one.settings['schedule']['cron']}</code><small>${one.settings['schedule']['timezone']}</small></td>
<td>
% if not one.enabled:
${shown.state('paused')}
% elif one.next_run_at is None:
${shown.state('never')}
% else:
${shown.since(one.next_run_at, now)}
% endif
</td>
<td>${shown.selected(one.settings['selection'])}</td>
<td>${shown.kept(one.settings['retention'])}</td>
</tr>
% endfor
</tbody></table></div>
% if more:
<p><a href="${base}/policies?${shown.query(marker=policies[-1].id)}">More</a></p>
% endif
% endif
${parts.same('GET /v3/PROJECT/backup-policies/detail', None, 'backupfw policy list')}
