<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">What was done</%def>
<h1>What was done, and by whom</h1>
<p>Backups that are there, and policies. <a href="${base}/messages${f'?{shown.query(project=project)}' if project else ''}">What failed</a></p>
% if everywhere:
${parts.of_project('messages/done', project)}
% endif
% if not actions:
<p>Nothing that is still there.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">When</th><th scope="col">What</th><th scope="col">By</th><th scope="col">State</th></tr></thead>
<tbody>
% for one in actions:
<tr>
<td>${shown.since(one.moment, now)}</td>
<th scope="row">${shown.ACTIONS[one.kind]} \
% if one.volume_id:
<a href="${base}/volumes/${one.volume_id}#backup-${one.id}" title="${one.id}">${shown.named(one.name, one.id)}</a>
% else:
<a href="${base}/policies/${one.id}" title="${one.id}">${shown.named(one.name, one.id)}</a>
% endif
% if everywhere:
<small>project ${one.project_id}</small>
% endif
</th>
<td>
% if one.policy_id:
<a href="${base}/policies/${one.policy_id}">policy ${one.policy_id[:8]}</a>
% else:
${one.user_id or '-'}
% endif
</td>
<td>${shown.state(one.status)}</td>
</tr>
% endfor
</tbody></table></div>
% if more:
<p><a href="${base}/messages/done?${shown.query(project=project, before=actions[-1].moment.isoformat())}">Older</a></p>
% endif
% endif
<p><small>Deletions and restores leave no record here: the log of the API has each request with its user.</small></p>
${parts.same('GET /v3/PROJECT/backups/detail?sort=created_at:desc', None, 'backupfw backup list')}
